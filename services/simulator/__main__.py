"""`python -m services.simulator --seeds 0:100`: run seeds, stop at the first that fails."""

import argparse
import json
import sys

from services.simulator.run import simulate
from services.simulator.scenario import swarm_scenario


def main() -> int:
    """Run the seeds; print one line each, and for a failure how to run it again."""
    parser = argparse.ArgumentParser(prog="python -m services.simulator", description=__doc__)
    parser.add_argument("--seeds", default="0:20", help="first:last+1 (default %(default)s)")
    parser.add_argument("--requests", type=int, default=60, help="per seed (default %(default)s)")
    parser.add_argument("--json", action="store_true", help="one JSON object per seed")
    options = parser.parse_args()
    first, _, end = options.seeds.partition(":")
    for seed in range(int(first), int(end or int(first) + 1)):
        verdict = simulate(swarm_scenario(seed=seed, requests=options.requests))
        if options.json:
            print(json.dumps(verdict.as_json()), flush=True)
        else:
            print(verdict.line(), flush=True)
        if not verdict.is_ok:
            print(
                f"reproduce: python -m services.simulator --seeds {seed}:{seed + 1} "
                f"--requests {options.requests}",
                file=sys.stderr,
            )
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
