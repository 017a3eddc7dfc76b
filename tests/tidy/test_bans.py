"""What may not stand in the source, each with what to do instead."""

import ast
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import pytest

THIS_FOLDER = "tests/tidy"
PRODUCT = ("libs", "services", "loadgen")


@dataclass(frozen=True, kw_only=True)
class Ban:
    """A pattern, where it is banned (everywhere unless told), where not, and the remedy."""

    pattern: str
    remedy: str
    under: tuple[str, ...] = ("libs", "services", "loadgen", "tools", "benchmarks", "tests")
    but_not: tuple[str, ...] = ()


BANS = [
    Ban(
        pattern=r"^\s*(import|from) (pickle|cPickle|dill|marshal|shelve|joblib)\b",
        remedy="msgpack through libs/contracts for messages, safetensors for tensors",
    ),
    Ban(pattern=r"\btorch\.load\(", remedy="safetensors: torch.load runs code from the file"),
    Ban(pattern=r"(?<![\w.])(eval|exec)\(", remedy="parse the input, or look a name up in a dict"),
    Ban(
        pattern=r"trust_remote_code\s*=\s*True",
        remedy="a model folder is data; support its family in libs/engine instead",
    ),
    Ban(pattern=r"\b(TODO|FIXME|XXX)\b", remedy="do it, or describe it where work is tracked"),
    Ban(pattern=r"\bNotImplementedError\b", remedy="leave it out until it is there"),
    Ban(
        pattern=r"\bos\.(environ|getenv)\b",
        remedy="a field of the service's config, read by libs/runtime/config.py",
        under=PRODUCT,
        but_not=("libs/runtime", "services/launcher"),
    ),
    Ban(
        pattern=r"shell\s*=\s*True|\bos\.system\(",
        remedy="a list of arguments: nothing is then read as a command by a shell",
    ),
    Ban(
        pattern=r"\b(0\.0\.0\.0)\b",
        remedy="bind loopback; a container sets its host by its environment",
        under=PRODUCT,
    ),
]

WEAK_NAMES = {"utils", "util", "helpers", "helper", "common", "manager", "misc", "base"}
HOME_FOLDER = re.compile(r"(?<![\w.])/(home|root|Users|work|farm)/[A-Za-z.]")


@pytest.mark.parametrize("ban", BANS, ids=lambda ban: ban.pattern)
def test_nothing_banned_stands_in_the_source(repository: Any, ban: Ban) -> None:
    pattern = re.compile(ban.pattern)
    found = [
        f"{file.name}:{number}"
        for file in repository.python_files
        if file.is_under(*ban.under) and not file.is_under(THIS_FOLDER, *ban.but_not)
        for number, line in enumerate(file.text.splitlines(), start=1)
        if pattern.search(line)
    ]
    assert not found, f"use instead: {ban.remedy}; found in " + ", ".join(found)


def test_a_file_is_named_after_what_is_in_it(repository: Any) -> None:
    weak = [file.name for file in repository.python_files if file.path.stem in WEAK_NAMES]
    assert not weak, "name the noun: " + ", ".join(weak)


def test_no_file_names_a_folder_of_somebodys_machine(repository: Any) -> None:
    found = [
        f"{file.name}:{number}"
        for file in repository.python_files + repository.text_files
        if not file.is_under(THIS_FOLDER)
        for number, line in enumerate(file.text.splitlines(), start=1)
        if HOME_FOLDER.search(line)
    ]
    assert not found, "write paths from the repository's root: " + ", ".join(found)


def test_a_core_is_synchronous(repository: Any) -> None:
    found = [
        f"{file.name}:{node.lineno}"
        for file in repository.core_files()
        for node in file.nodes
        if isinstance(node, ast.AsyncFunctionDef | ast.Await | ast.AsyncFor | ast.AsyncWith)
    ]
    assert not found, "return a command and let the shell await: " + ", ".join(found)


def test_a_core_never_iterates_a_set_unsorted(repository: Any) -> None:
    found = [
        f"{file.name}:{node.iter.lineno}"
        for file in repository.core_files()
        for node in file.nodes
        if isinstance(node, ast.For | ast.comprehension) and _is_a_set(node.iter)
    ]
    assert not found, "iterate sorted(...): a set's order differs per process: " + ", ".join(found)


def test_only_a_process_itself_prints(repository: Any) -> None:
    found = [
        f"{file.name}:{node.lineno}"
        for file in repository.python_files
        if file.is_under(*PRODUCT) and file.path.name not in ("__main__.py", "process.py")
        for node in file.nodes
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == "print"
    ]
    assert not found, "log a structlog line; commands print by their console: " + ", ".join(found)


def test_a_shell_that_logs_a_decision_names_its_cause(repository: Any) -> None:
    found = [
        f"{file.name}:{node.lineno}"
        for file in repository.python_files
        if file.is_under("services") and file.path.name == "shell.py"
        for node in file.nodes
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and ast.unparse(node.func.value) == "_log"
        and not any(keyword.arg in ("cause_id", None) for keyword in node.keywords)
    ]
    assert not found, "give cause_id=command.cause_id, for `tideserve story`: " + ", ".join(found)


def test_a_skipped_test_says_why(repository: Any) -> None:
    found = []
    for file in repository.python_files:
        for node in file.nodes:
            if isinstance(node, ast.Attribute) and node.attr in {"skip", "xfail", "skipif"}:
                call = _call_of(file.nodes, node)
                if not _has_a_reason(node.attr, call):
                    found.append(f"{file.name}:{node.lineno}")
    assert not found, "give the reason: " + ", ".join(found)


def _is_a_set(node: ast.expr) -> bool:
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        return node.func.id in {"set", "frozenset"}
    return isinstance(node, ast.Set | ast.SetComp)


def _call_of(nodes: Iterable[ast.AST], attribute: ast.Attribute) -> ast.Call | None:
    calls = (node for node in nodes if isinstance(node, ast.Call))
    return next((call for call in calls if call.func is attribute), None)


def _has_a_reason(name: str, call: ast.Call | None) -> bool:
    if call is None:
        return False
    by_name = any(keyword.arg in {"reason", "msg"} for keyword in call.keywords)
    return by_name or (name != "skipif" and bool(call.args))
