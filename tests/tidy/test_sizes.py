"""Files, functions and lines stay small enough to read at one sitting."""

import ast
import re
from typing import Any

FILE_LINES_MAX = 500
FUNCTION_LINES_MAX = 70
LINE_CHARACTERS_MAX = 100
DIRECTIVE = re.compile(r"\s*# (type: ignore|noqa|fmt: skip)\S*$")
"""A word to a tool at the end of a line, which cannot be broken."""


def test_a_file_has_at_most_500_lines(repository: Any) -> None:
    long = [
        f"{file.name}: {file.text.count(chr(10))} lines"
        for file in repository.python_files
        if file.text.count("\n") > FILE_LINES_MAX
    ]
    assert not long, "split by noun, not by size: " + "; ".join(long)


def test_a_function_has_at_most_70_lines(repository: Any) -> None:
    long = []
    for file in repository.python_files:
        for node in file.nodes:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                if lines > FUNCTION_LINES_MAX:
                    long.append(f"{file.name}:{node.lineno} {node.name}: {lines} lines")
    assert not long, "name its steps as functions: " + "; ".join(long)


def test_a_line_has_at_most_100_characters(repository: Any) -> None:
    long = [
        f"{file.name}:{number}"
        for file in repository.python_files
        for number, line in enumerate(file.text.splitlines(), start=1)
        if len(DIRECTIVE.sub("", line)) > LINE_CHARACTERS_MAX
    ]
    assert not long, "`make format`, or break the string: " + "; ".join(long)
