"""Subjects and patterns as NATS reads them."""

import pytest

from libs.kernel.errors import ContractViolation
from libs.runtime.subject_matching import (
    SubjectTable,
    is_match,
    is_overlap,
    require_pattern,
    require_subject,
)


@pytest.mark.parametrize(
    ("pattern", "subject", "expected"),
    [
        ("a.b", "a.b", True),
        ("a.b", "a.b.c", False),
        ("a.*", "a.b", True),
        ("a.*", "a", False),
        ("a.*", "a.b.c", False),
        ("*.b", "a.b", True),
        ("a.>", "a.b.c", True),
        ("a.>", "a", False),
        (">", "a", True),
        ("*", "a.b", False),
        ("a.*.c", "a.b.c", True),
        ("a.*.c", "a.b.d", False),
    ],
)
def test_a_pattern_covers_exactly_its_subjects(pattern, subject, expected):
    assert is_match(pattern, subject) is expected


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ("a.*", "*.b", True),
        ("a.b", "a.c", False),
        ("a.>", "a.b.c", True),
        ("a.>", "a", False),
        ("a.*", "a.b.c", False),
        (">", "x", True),
        ("a.*.c", "a.b.*", True),
    ],
)
def test_two_patterns_overlap_if_some_subject_fits_both(one, other, expected):
    assert is_overlap(one, other) is expected
    assert is_overlap(other, one) is expected


@pytest.mark.parametrize("subject", ["", "a.", ".a", "a b", "a\tb", "a.\n", "*", "a.>"])
def test_what_is_no_subject_is_refused(subject):
    with pytest.raises(ContractViolation):
        require_subject(subject)


@pytest.mark.parametrize("pattern", ["a.>.b", ">.a", "a..*"])
def test_what_is_no_pattern_is_refused(pattern):
    with pytest.raises(ContractViolation):
        require_pattern(pattern)


def test_a_table_finds_values_in_the_order_they_were_added():
    table: SubjectTable[str] = SubjectTable()
    table.add("a.*", "wild")
    table.add("a.b", "literal")
    table.add(">", "all")
    assert table.find("a.b") == ("wild", "literal", "all")
    assert table.find("a.c") == ("wild", "all")
    table.remove("a.*", "wild")
    assert table.find("a.b") == ("literal", "all")
    table.remove("a.b", "literal")
    assert table.find("a.b") == ("all",)
