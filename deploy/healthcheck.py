"""Exits 0 if the URL answers 200 within two seconds; what a container's health check runs."""

import sys
import urllib.error
import urllib.request


def main() -> None:
    """Ask once."""
    try:
        with urllib.request.urlopen(sys.argv[1], timeout=2) as response:
            sys.exit(0 if response.status == 200 else 1)
    except (urllib.error.URLError, TimeoutError) as error:
        sys.exit(f"{sys.argv[1]}: {error}")


if __name__ == "__main__":
    main()
