"""Entry point of `python -m loadgen`."""

import sys

from loadgen.command import run

if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
