"""A plan arrives as it was sent, field for field; anything else is refused."""

import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from libs.engine.requests import SamplingOptions, SequenceRequest, StopOptions
from libs.engine.steps import PlanEntry, StepPlan
from libs.kernel.errors import ContractViolation
from services.gpu_worker.peers.array_codec import ArrayCodec
from services.gpu_worker.peers.plan_codec import STEP_PLANS
from tests.integration.gpu_worker_peers.plans import a_plan, a_request

GOLDEN = Path(__file__).parent / "step_plan.v1.json"
FUZZ = settings(max_examples=100, deadline=None)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=8),
    max_leaves=25,
)
PLANS = st.builds(
    StepPlan,
    step_id=st.integers(0, 2**62),
    entries=st.lists(st.from_type(PlanEntry), max_size=3).map(tuple),
    opened=st.lists(
        st.builds(
            SequenceRequest,
            sequence_id=st.text(),
            prompt_token_ids=st.lists(st.integers(0, 2**31)).map(tuple),
            sampling=st.builds(SamplingOptions, temperature=st.floats(0, 10), seed=st.integers(0)),
            stop=st.from_type(StopOptions),
        ),
        max_size=2,
    ).map(tuple),
    closed=st.lists(st.text(), max_size=3).map(tuple),
)


def fields_of(value: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yield each field of nested dataclasses: its path, its value, its default."""
    for field in dataclasses.fields(value):
        each = getattr(value, field.name)
        name = f"{path}.{field.name}"
        yield name, each, field.default
        for item in each if isinstance(each, tuple) else (each,):
            if dataclasses.is_dataclass(item):
                yield from fields_of(item, name)


def test_every_field_of_a_plan_arrives() -> None:
    # The example leaves no field at its default, so that one that is not carried is missed.
    plan = a_plan(3)
    assert [path for path, value, default in fields_of(plan) if value == default] == []
    assert STEP_PLANS.unpack(STEP_PLANS.pack(plan)) == plan


@FUZZ
@given(plan=PLANS)
def test_any_plan_arrives_as_it_was_sent(plan: StepPlan) -> None:
    try:
        packed = STEP_PLANS.pack(plan)
    except OverflowError:
        return  # An integer over 64 bits, which no caller has.
    assert STEP_PLANS.unpack(packed) == plan


def test_the_bytes_of_a_plan_are_those_of_its_release(request: pytest.FixtureRequest) -> None:
    golden = json.loads(GOLDEN.read_text())
    assert STEP_PLANS.pack(a_plan(3)).hex() == golden["hex"]
    assert STEP_PLANS.unpack(bytes.fromhex(golden["hex"])) == a_plan(3)


def test_a_set_is_packed_in_the_same_order_everywhere() -> None:
    one = replace(a_request().stop, stop_token_ids=frozenset([2, 9, 17]))
    two = replace(a_request().stop, stop_token_ids=frozenset([17, 9, 2]))
    plans = [replace(a_plan(1), opened=(replace(a_request(), stop=stop),)) for stop in (one, two)]
    assert STEP_PLANS.pack(plans[0]) == STEP_PLANS.pack(plans[1])


@dataclass(frozen=True, kw_only=True)
class Wider:
    """A plan of a later release."""

    step_id: int
    mask: dict[str, int]


def test_a_field_of_a_type_that_cannot_be_packed_fails_when_the_codec_is_made() -> None:
    with pytest.raises(TypeError, match=r"Wider\.mask"):
        ArrayCodec(Wider, tag="wider.v1")


@FUZZ
@given(payload=st.binary(max_size=200))
def test_arbitrary_bytes_are_refused(payload: bytes) -> None:
    with pytest.raises(ContractViolation):
        STEP_PLANS.unpack(payload)


@FUZZ
@given(value=VALUES)
def test_arbitrary_fields_are_read_or_refused(value: Any) -> None:
    for fields in (value, [1, [value], [], []], [1, [], [value], []]):
        try:
            STEP_PLANS.unpack(msgpack.packb(("step_plan.v1", fields)))
        except ContractViolation:
            continue


@FUZZ
@given(data=st.data())
def test_a_damaged_plan_is_read_or_refused(data: st.DataObject) -> None:
    payload = bytearray(STEP_PLANS.pack(a_plan(3)))
    for _ in range(data.draw(st.integers(1, 4))):
        payload[data.draw(st.integers(0, len(payload) - 1))] = data.draw(st.integers(0, 255))
    try:
        STEP_PLANS.unpack(bytes(payload[: data.draw(st.integers(0, len(payload)))]))
    except ContractViolation:
        return


@pytest.mark.parametrize(
    "entry",
    [
        ["a", [1.5], 0, [0], True, 0, 0],
        ["a", [True], 0, [0], True, 0, 0],
        ["a", [1], 0, [0], 1, 0, 0],
        ["a", [1], None, [0], True, 0, 0],
        [b"a", [1], 0, [0], True, 0, 0],
        ["a", [1], 0, [0], True, 0],
        ["a", [1], 0, [0], True, 0, 0, 0],
    ],
    ids=str,
)
def test_an_entry_of_other_fields_is_refused(entry: list[Any]) -> None:
    with pytest.raises(ContractViolation):
        STEP_PLANS.unpack(msgpack.packb(("step_plan.v1", [1, [entry], [], []])))
