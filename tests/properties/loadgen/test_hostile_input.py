"""Whatever a file or a server says, the answer is a value or one clear error, never a crash."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from libs.kernel.errors import ConfigError
from libs.kernel.rng import Rng
from loadgen.clients.answer_check import AnswerCheck
from loadgen.records import Ending
from loadgen.traces.detect import read_availability, read_lengths, read_rates, read_requests

SAMPLES = (
    "TIMESTAMP,ContextTokens,GeneratedTokens\r\n2023-11-16 18:17:03.9799600,4808,10\r\n",
    "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n5,ChatGPT,4,1,5,API\n",
    '{"timestamp": 27482, "input_length": 600, "output_length": 52, "hash_ids": [46, 47]}\n',
    "num_prefill_tokens,num_decode_tokens,num_total_tokens,pd_ratio\n74,918,992,0.08\n",
    '[0, "add", {"nodes": ["node-0"]}]\n[9, "DONE", {"nodes": []}]\n',
    "480000,add,node1\r\n540000,remove,node1\r\n",
    "0,3\r\n60000,5\r\n",
    '{"metadata": {"gap_seconds": 60}, "data": [2, 2, 4, 1]}',
    "0.5,0.25\n",
)
EDIT_TEXTS = ("", "0", "-1", "1e999", "nan", "null", "[]", "{}", '"', ",", "\n", "\x00", "add")
EDITS = st.sampled_from((*EDIT_TEXTS, "\u0663", "9" * 30))
KEYS = (
    "id choices index text delta content usage finish_reason token_ids"
    " prompt_tokens completion_tokens error message code"
)
READERS: tuple[Callable[[Path], object], ...] = (
    lambda path: list(read_requests(path)),
    lambda path: list(read_lengths(path)),
    lambda path: list(read_rates(path)),
    lambda path: read_availability(str(path), rng=Rng(0)),
)


@st.composite
def edited_samples(draw: st.DrawFn) -> str:
    """A trace with some stretches replaced."""
    text = draw(st.sampled_from(SAMPLES))
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(text)))
        end = draw(st.integers(start, min(len(text), start + 12)))
        text = text[:start] + draw(EDITS) + text[end:]
    return text


@pytest.mark.parametrize("reader", READERS)
@given(text=edited_samples())
@settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_a_trace_is_read_or_refused(
    tmp_path: Path, reader: Callable[[Path], object], text: str
) -> None:
    path = tmp_path / "trace"
    path.write_bytes(text.encode())
    refusal = ""
    try:
        reader(path)
    except ConfigError as error:
        refusal = str(error)
    assert not refusal or refusal.startswith(str(path))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(KEYS.split()), inner, max_size=5)
    ),
    max_leaves=12,
)


@given(events=st.lists(JSON, max_size=6), is_done=st.booleans())
@settings(max_examples=300, deadline=None)
def test_any_events_end_in_a_verdict(events: list[object], is_done: bool) -> None:
    check = AnswerCheck(output_tokens_max=3, is_length_exact=False, token_ids_sent=None)
    for content in events:
        assert check.take_line("data: " + json.dumps(content)) >= 0
    if is_done:
        check.take_line("data: [DONE]")
    assert isinstance(check.verdict(cut=None), Ending)
