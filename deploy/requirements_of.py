"""Prints what one service needs: `python requirements_of.py worker` reads pyproject.toml.

An image then has a layer of packages that changes with pyproject.toml alone, not with the code.
"""

import sys
import tomllib


def main() -> None:
    """Print the project's own dependencies and those of the extra, one per line."""
    with open("pyproject.toml", "rb") as file:
        project = tomllib.load(file)["project"]
    extra = project["optional-dependencies"][sys.argv[1]]
    sys.stdout.write("\n".join([*project["dependencies"], *extra]) + "\n")


if __name__ == "__main__":
    main()
