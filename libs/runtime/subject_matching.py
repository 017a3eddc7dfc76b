"""Subjects and patterns as NATS reads them: tokens between dots, `*` one token, `>` the rest."""

import functools
from collections.abc import Hashable
from typing import Final, Generic, TypeVar

from libs.kernel.errors import ContractViolation

ROUTES_CACHED_MAX: Final = 65_536
"""Subjects whose matches are remembered; at the bound the table forgets all and starts anew."""
SUBJECTS_CHECKED_MAX: Final = 65_536
"""Subjects remembered as good: publishing checks each, and most are published to again."""

ValueT = TypeVar("ValueT", bound=Hashable)


@functools.lru_cache(maxsize=SUBJECTS_CHECKED_MAX)
def require_subject(subject: str) -> None:
    """Raise ContractViolation unless one can publish to this subject (no wildcard in it)."""
    require_pattern(subject)
    tokens = subject.split(".")
    if "*" in tokens or ">" in tokens:
        raise ContractViolation(f"cannot publish to a pattern: {subject!r}")


def require_pattern(pattern: str) -> None:
    """Raise ContractViolation unless one can subscribe to this pattern."""
    if not pattern.isprintable() or " " in pattern:
        raise ContractViolation(f"a subject has no spaces or control characters: {pattern!r}")
    tokens = pattern.split(".")
    if "" in tokens:
        raise ContractViolation(f"a subject has no empty tokens: {pattern!r}")
    if ">" in tokens[:-1]:
        raise ContractViolation(f"'>' may only be the last token: {pattern!r}")


def is_match(pattern: str, subject: str) -> bool:
    """Tell whether the pattern covers the subject."""
    pattern_tokens = pattern.split(".")
    subject_tokens = subject.split(".")
    for index, token in enumerate(pattern_tokens):
        if token == ">":
            return len(subject_tokens) > index
        if index >= len(subject_tokens):
            return False
        if token not in ("*", subject_tokens[index]):
            return False
    return len(pattern_tokens) == len(subject_tokens)


def is_overlap(one: str, other: str) -> bool:
    """Tell whether some subject is covered by both patterns."""
    one_tokens = one.split(".")
    other_tokens = other.split(".")
    for one_token, other_token in zip(one_tokens, other_tokens, strict=False):
        if ">" in (one_token, other_token):
            return True
        if one_token != other_token and "*" not in (one_token, other_token):
            return False
    return len(one_tokens) == len(other_tokens)


class SubjectTable(Generic[ValueT]):
    """Patterns with a value each; finds the values whose pattern covers a subject, in the order
    in which they were added."""

    def __init__(self) -> None:
        self._literal: dict[str, dict[ValueT, int]] = {}
        self._wild: dict[ValueT, tuple[str, int]] = {}
        self._added = 0
        self._routes: dict[str, tuple[ValueT, ...]] = {}

    def add(self, pattern: str, value: ValueT) -> None:
        """Add one pair. A value may stand under one pattern only."""
        self._routes.clear()
        self._added += 1
        tokens = pattern.split(".")
        if "*" in tokens or ">" in tokens:
            self._wild[value] = (pattern, self._added)
        else:
            self._literal.setdefault(pattern, {})[value] = self._added

    def remove(self, pattern: str, value: ValueT) -> None:
        """Remove the pair if it is there."""
        self._routes.clear()
        self._wild.pop(value, None)
        values = self._literal.get(pattern, {})
        values.pop(value, None)
        if not values:
            self._literal.pop(pattern, None)

    def find(self, subject: str) -> tuple[ValueT, ...]:
        """Return the values whose pattern covers the subject."""
        route = self._routes.get(subject)
        if route is None:
            route = self._search(subject)
            if len(self._routes) >= ROUTES_CACHED_MAX:
                self._routes.clear()
            self._routes[subject] = route
        return route

    def _search(self, subject: str) -> tuple[ValueT, ...]:
        found = [(order, value) for value, order in self._literal.get(subject, {}).items()]
        for value, (pattern, order) in self._wild.items():
            if is_match(pattern, subject):
                found.append((order, value))
        found.sort(key=lambda pair: pair[0])
        return tuple(value for _, value in found)
