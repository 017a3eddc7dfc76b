"""Prints what a service needs: `python requirements_of.py worker,ucx` reads pyproject.toml.

An image then has a layer of packages that changes with them alone, not with the code.
"""

import sys
import tomllib


def main() -> None:
    """Print the project's own dependencies and those of the extras, one per line."""
    with open("pyproject.toml", "rb") as file:
        project = tomllib.load(file)["project"]
    extras = sys.argv[1].split(",")
    needed = [line for extra in extras for line in project["optional-dependencies"][extra]]
    sys.stdout.write("\n".join([*project["dependencies"], *needed]) + "\n")


if __name__ == "__main__":
    main()
