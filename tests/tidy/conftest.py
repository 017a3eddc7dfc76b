"""The repository as text, for checks that read it and run nothing of it."""

import ast
import subprocess
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
NOT_OURS = {".venv", ".git", "dist", "demo_report", ".tideserve", "__pycache__"}


@dataclass(frozen=True)
class SourceFile:
    """One file: its path from the root, its text and, for Python, its syntax."""

    path: Path
    text: str = field(repr=False)

    @cached_property
    def nodes(self) -> tuple[ast.AST, ...]:
        """Every node of its syntax tree, the module itself first."""
        return tuple(ast.walk(ast.parse(self.text)))

    @property
    def docstring(self) -> str | None:
        module = self.nodes[0]
        assert isinstance(module, ast.Module)
        return ast.get_docstring(module)

    @property
    def name(self) -> str:
        return self.path.as_posix()

    def is_under(self, *folders: str) -> bool:
        return any(self.name == folder or self.name.startswith(f"{folder}/") for folder in folders)


class Repository:
    """All files that belong to the project: what git tracks, or everything where git is not."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @cached_property
    def paths(self) -> tuple[Path, ...]:
        try:
            listed = subprocess.run(
                ["git", "ls-files", "-z"], cwd=self.root, check=True, capture_output=True, text=True
            ).stdout.split("\0")
        except (OSError, subprocess.CalledProcessError):
            found = (path.relative_to(self.root) for path in self.root.rglob("*"))
            listed = [str(path) for path in found if not NOT_OURS & set(path.parts)]
        return tuple(sorted(Path(name) for name in listed if (self.root / name).is_file()))

    @cached_property
    def python_files(self) -> tuple[SourceFile, ...]:
        return tuple(self._read(path) for path in self.paths if path.suffix == ".py")

    @cached_property
    def text_files(self) -> tuple[SourceFile, ...]:
        kinds = {".md", ".toml", ".yml", ".yaml", ".sh", ".conf", ".txt", ".svg", ""}
        plain = [p for p in self.paths if p.suffix in kinds and "models" not in p.parts]
        return tuple(self._read(path) for path in plain)

    @cached_property
    def pyproject(self) -> dict[str, Any]:
        return tomllib.loads((self.root / "pyproject.toml").read_text())

    def folders_in(self, parent: str) -> list[str]:
        """Names of the packages right below `parent` that hold at least one tracked file."""
        inside = [p for p in self.paths if len(p.parts) > 2 and p.parts[0] == parent]
        return sorted({path.parts[1] for path in inside if path.suffix == ".py"})

    def contract(self, start_of_name: str) -> dict[str, Any]:
        """The import contract whose name starts like this."""
        contracts: list[dict[str, Any]] = self.pyproject["tool"]["importlinter"]["contracts"]
        return next(c for c in contracts if c["name"].startswith(start_of_name))

    def core_files(self) -> Iterator[SourceFile]:
        """Files of the modules that the contract on cores names."""
        modules = self.contract("a core knows")["source_modules"]
        folders = [module.replace(".", "/") for module in modules]
        for file in self.python_files:
            if file.is_under(*folders, *(f"{folder}.py" for folder in folders)):
                yield file

    def _read(self, path: Path) -> SourceFile:
        return SourceFile(path, (self.root / path).read_text(encoding="utf-8"))


@pytest.fixture(scope="package")
def repository() -> Repository:
    """Read once; forgotten after this folder's tests, because its syntax is millions of objects."""
    return Repository(ROOT)
