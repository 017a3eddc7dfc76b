"""Answers held to a schema, and scored prompts, are the same of a model that is cut."""

import json
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from libs.contracts.online import TokenLogprobs
from libs.engine.batch_run import run_to_completion
from libs.engine.loading import EngineOptions, load_engine
from libs.engine.requests import SamplingOptions, SequenceRequest, StopOptions
from libs.engine.scheduler import Scheduler
from libs.engine.steps import TokenEmitted
from tests.integration.engine.replica_fleet import Fleet, Replica, form_replica

Answers = dict[str, list[TokenEmitted]]
SHAPES = [(2, 1), (1, 2)]
"""(stages, shards)"""
STEP_TOKENS = 24
"""A prompt takes several steps, and two stages cut each of them once more."""
LOGPROB_ERROR = 1e-4
"""Shards add up in another order."""
SCHEMA = json.dumps(
    {
        "type": "object",
        "properties": {
            "tide": {"enum": ["ebb", "flood"]},
            "depth": {"type": "integer", "minimum": 0, "maximum": 99},
        },
        "required": ["tide", "depth"],
        "additionalProperties": False,
    }
)


def a_request(
    name: str, sampling: SamplingOptions, *, tokens: int, schema: str | None = None
) -> SequenceRequest:
    rng = Random(tokens)
    return SequenceRequest(
        sequence_id=name,
        prompt_token_ids=tuple(rng.randrange(1, 384) for _ in range(tokens)),
        sampling=sampling,
        stop=StopOptions(max_tokens=400 if schema else 20, ignore_eos=schema is None),
        answer_schema=schema,
    )


ECHO = a_request("echo", SamplingOptions(logprobs=3, prompt_logprobs=True), tokens=57)
REQUESTS = [
    a_request("plain", SamplingOptions(logprobs=1), tokens=30),
    ECHO,
    a_request("json", SamplingOptions(temperature=1.0, seed=4), tokens=12, schema=SCHEMA),
    a_request("short echo", SamplingOptions(logprobs=0, prompt_logprobs=True), tokens=2),
    a_request(
        "scored json",
        SamplingOptions(temperature=1.3, seed=9, logprobs=2, prompt_logprobs=True),
        tokens=41,
        schema=SCHEMA,
    ),
]


@pytest.fixture(scope="module")
def expected(llama_folder: Path) -> Answers:
    """What the whole model answers."""
    engine = load_engine(str(llama_folder), options=EngineOptions(dtype="float32"))
    return run_to_completion(Scheduler(engine.scheduler_options), engine.runner, REQUESTS)


def replica_of(fleet: Fleet, folder: Path, *, stages: int, shards: int) -> Replica:
    return form_replica(
        fleet, folder, stages=stages, shards=shards, step_tokens_max=STEP_TOKENS, sequences_max=8
    )


def scores_of(tokens: list[TokenEmitted]) -> Iterator[TokenLogprobs]:
    for token in tokens:
        if token.logprobs is not None:
            yield from (*token.logprobs.prompt, token.logprobs)


def assert_same(got: list[TokenEmitted], wanted: list[TokenEmitted]) -> None:
    assert [(t.token_id, t.text, t.finish_reason) for t in got] == [
        (t.token_id, t.text, t.finish_reason) for t in wanted
    ]
    for one, other in zip(scores_of(got), scores_of(wanted), strict=True):
        pairs = zip((one.chosen, *one.best), (other.chosen, *other.best), strict=True)
        for score, expected_score in pairs:
            assert score.token_id == expected_score.token_id
            assert score.text == expected_score.text
            assert score.logprob == pytest.approx(expected_score.logprob, abs=LOGPROB_ERROR)


@pytest.mark.parametrize(("stages", "shards"), SHAPES)
def test_schemas_and_scored_prompts_do_not_depend_on_the_shape(
    fleet: Fleet, llama_folder: Path, expected: Answers, stages: int, shards: int
) -> None:
    replica = replica_of(fleet, llama_folder, stages=stages, shards=shards)
    # Alone, the end of its prompt lies across a cut.
    assert_same(replica.answers([ECHO])["echo"], expected["echo"])
    answers = replica.answers(REQUESTS)
    for request in REQUESTS:
        got = answers[request.sequence_id]
        assert_same(got, expected[request.sequence_id])
        if request.needs_prompt_scores:
            assert got[0].logprobs is not None
            scored = tuple(item.chosen.token_id for item in got[0].logprobs.prompt)
            assert scored == request.prompt_token_ids
        if request.answer_schema is not None:
            answer = json.loads("".join(token.text for token in got))
            assert sorted(answer) == ["depth", "tide"]
    chunks = [entry.tokens_scored for plan in replica.plans for entry in plan.entries]
    assert sum(map(bool, chunks)) > 4, "every prompt fitted one step: this would show little"
