"""Prints what one service needs: `python requirements_of.py gateway s3` reads pyproject.toml.

An image then has a layer of packages that changes with pyproject.toml alone, not with the code.
"""

import sys
import tomllib


def main() -> None:
    """Print the project's own dependencies and those of the extras, one per line."""
    with open("pyproject.toml", "rb") as file:
        project = tomllib.load(file)["project"]
    needed = list(project["dependencies"])
    for extra in sys.argv[1:]:
        needed += project["optional-dependencies"][extra]
    sys.stdout.write("\n".join(needed) + "\n")


if __name__ == "__main__":
    main()
