"""The repository is in step with itself: packages, services, documents, versions."""

import ast
import re
import sys
from collections.abc import Iterable
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import services

COMPOSERS = {"launcher", "simulator"}
NOT_IN_COMPOSE = COMPOSERS
"""Run by a person: everything else under services/ is a container of its own."""


def test_services_is_the_package_of_this_repository(repository: Any) -> None:
    # `services` is a likely name; an installed package of that name would shadow ours.
    assert services.__file__ is not None
    assert Path(services.__file__).resolve().is_relative_to(repository.root)


def test_every_package_says_what_it_is(repository: Any) -> None:
    product = [f for f in repository.python_files if not f.is_under("tests")]
    folders = {file.path.parent for file in product if file.path.parts[0] != "deploy"}
    documented = {
        file.path.parent for file in product if file.path.name == "__init__.py" and file.docstring
    }
    missing = sorted(str(folder) for folder in folders - documented)
    assert not missing, "add __init__.py with a docstring: " + ", ".join(missing)


def test_every_module_says_what_it_is(repository: Any) -> None:
    product = [file for file in repository.python_files if not file.is_under("tests")]
    silent = [file.name for file in product if not file.docstring]
    assert not silent, "add a docstring: " + ", ".join(silent)


def test_every_service_is_held_by_the_import_contracts(repository: Any) -> None:
    named = set(repository.contract("services do not know")["modules"])
    expected = {
        f"services.{name}" for name in repository.folders_in("services") if name not in COMPOSERS
    }
    assert named == expected, "list it in pyproject.toml under [tool.importlinter]"


def test_every_library_has_its_layer(repository: Any) -> None:
    layers = {layer.strip("()") for layer in repository.contract("libs stand")["layers"]}
    missing = {f"libs.{name}" for name in repository.folders_in("libs")} - layers
    assert not missing, "list it in pyproject.toml under [tool.importlinter]"


def test_every_core_is_held_by_the_contract_on_cores(repository: Any) -> None:
    named = repository.contract("a core knows")["source_modules"]
    cores = [file for file in repository.python_files if file.path.name == "core.py"]
    modules = {file.name.removesuffix(".py").replace("/", ".") for file in cores}
    missing = sorted(module for module in modules if not _is_covered(module, named))
    assert not missing, "list it in pyproject.toml: " + ", ".join(missing)


def test_make_runs_every_kind_of_test(repository: Any) -> None:
    makefile = (repository.root / "Makefile").read_text()
    kinds = re.search(r"^KINDS := (.*)$", makefile, re.MULTILINE)
    assert kinds is not None
    tests = [path for path in repository.paths if path.parts[0] == "tests"]
    folders = {path.parts[1] for path in tests if len(path.parts) > 2}
    assert folders <= set(kinds.group(1).split()), "name the folder in KINDS of the Makefile"


def test_compose_has_one_service_for_each_service_folder(repository: Any) -> None:
    compose = (repository.root / "docker-compose.yml").read_text()
    built = set(re.findall(r"services\.(\w+)", compose))
    expected = set(repository.folders_in("services")) - NOT_IN_COMPOSE
    assert built == expected, "docker-compose.yml and services/ differ"


def test_the_version_is_the_same_everywhere(repository: Any) -> None:
    version = repository.pyproject["project"]["version"]
    changelog = (repository.root / "CHANGELOG.md").read_text()
    newest = re.search(r"^## (\d\S*)", changelog, re.MULTILINE)
    assert newest is not None
    assert newest.group(1) == version, "CHANGELOG.md and pyproject.toml differ"


def test_every_dependency_is_pinned(repository: Any) -> None:
    pinned = {
        line.split("==")[0].lower().replace("_", "-")
        for line in (repository.root / "constraints.txt").read_text().splitlines()
        if "==" in line and not line.startswith("#")
    }
    missing = _declared(repository) - pinned - {repository.pyproject["project"]["name"]}
    assert not missing, f"add to constraints.txt: {sorted(missing)}"


def test_every_import_from_outside_is_a_declared_dependency(repository: Any) -> None:
    own = {path.parts[0] for path in repository.paths if len(path.parts) > 1}
    distributions = packages_distributions()
    for_all, for_clients = _declared(repository), _declared_for_clients(repository)
    missing: dict[str, str] = {}
    for file in repository.python_files:
        declared = for_all | (for_clients if file.is_under("examples/clients") else set())
        for name in _imported_packages(file.nodes) - own - set(sys.stdlib_module_names):
            providers = {dist.lower().replace("_", "-") for dist in distributions.get(name, [name])}
            if not providers & declared:
                missing[name] = file.name
    assert not missing, f"declare it in pyproject.toml: {missing}"


def test_links_between_documents_lead_somewhere(repository: Any) -> None:
    broken = []
    for file in repository.text_files:
        if file.path.suffix != ".md":
            continue
        for target in re.findall(r"\]\(([^)#\s]+)", file.text):
            if "://" in target or target.startswith("mailto:"):
                continue
            if not (repository.root / file.path.parent / target).exists():
                broken.append(f"{file.name} -> {target}")
    assert not broken, "; ".join(broken)


def test_every_decision_record_is_numbered_once_and_listed(repository: Any) -> None:
    records = [path.name for path in repository.paths if path.parts[:2] == ("docs", "adr")]
    numbers = sorted(name[:4] for name in records)
    assert numbers == [f"{number:04}" for number in range(1, len(numbers) + 1)]
    architecture = (repository.root / "docs/ARCHITECTURE.md").read_text()
    missing = [name for name in records if name not in architecture]
    assert not missing, "link it from docs/ARCHITECTURE.md: " + ", ".join(missing)


def test_no_dockerfile_needs_a_registry_for_its_syntax(repository: Any) -> None:
    found = [
        file.name
        for file in repository.text_files
        if "Dockerfile" in file.path.name and re.search(r"^#\s*syntax=", file.text, re.MULTILINE)
    ]
    assert not found, "remove the `# syntax=` line: " + ", ".join(found)


def _declared(repository: Any) -> set[str]:
    project = repository.pyproject["project"]
    extras = [r for extra in project["optional-dependencies"].values() for r in extra]
    return _names(project["dependencies"] + extras)


def _declared_for_clients(repository: Any) -> set[str]:
    """What `make clients` installs beside the project's own environment."""
    lines = (repository.root / "examples/clients/requirements.txt").read_text().splitlines()
    return _names([line for line in lines if not line.startswith("#")])


def _names(requirements: list[str]) -> set[str]:
    return {re.split(r"[\[<>=; ]", r)[0].lower() for r in requirements}


def _imported_packages(nodes: Iterable[ast.AST]) -> set[str]:
    names: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.partition(".")[0])
    return names


def _is_covered(module: str, named: list[str]) -> bool:
    return any(module == name or module.startswith(f"{name}.") for name in named)
