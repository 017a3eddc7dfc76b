"""A random model, left to itself, writes no JSON; held to a schema it can write nothing else."""

import json
from pathlib import Path
from random import Random

import pytest

from libs.engine.batch_run import run_to_completion
from libs.engine.loading import EngineOptions, LoadedEngine, load_engine
from libs.engine.requests import SamplingOptions, SequenceRequest, StopOptions
from libs.engine.scheduler import Scheduler
from libs.engine.steps import TokenEmitted

PROMPT = tuple(Random(5).randrange(1, 384) for _ in range(20))
SHIP = json.dumps(
    {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 12},
            "draught": {"type": "integer", "minimum": 0, "maximum": 99},
            "cargo": {"type": "array", "items": {"enum": ["tea", "iron"]}, "maxItems": 3},
        },
        "required": ["name", "draught", "cargo"],
        "additionalProperties": False,
    }
)
SAMPLING = [
    SamplingOptions(),
    SamplingOptions(temperature=1.0, seed=21),
    SamplingOptions(temperature=1.6, min_p=0.02, presence_penalty=0.5, seed=22),
    SamplingOptions(temperature=1.0, top_p=0.8, top_k=30, seed=23, logprobs=2),
]


@pytest.fixture(scope="module")
def engine(llama_folder: Path) -> LoadedEngine:
    return load_engine(str(llama_folder), options=EngineOptions(dtype="float32"))


def run(engine: LoadedEngine, *requests: SequenceRequest) -> dict[str, list[TokenEmitted]]:
    return run_to_completion(Scheduler(engine.scheduler_options), engine.runner, requests)


def a_request(
    name: str,
    sampling: SamplingOptions,
    *,
    schema: str | None = SHIP,
    generated: tuple[int, ...] = (),
    max_tokens: int = 400,
) -> SequenceRequest:
    return SequenceRequest(
        sequence_id=name,
        prompt_token_ids=PROMPT,
        generated_token_ids=generated,
        sampling=sampling,
        stop=StopOptions(max_tokens=max_tokens),
        answer_schema=schema,
    )


def text_of(tokens: list[TokenEmitted]) -> str:
    return "".join(token.text for token in tokens)


@pytest.mark.parametrize("sampling", SAMPLING)
def test_the_answer_is_what_the_schema_says(
    engine: LoadedEngine, sampling: SamplingOptions
) -> None:
    tokens = run(engine, a_request("s", sampling))["s"]
    assert tokens[-1].finish_reason == "stop"
    ship = json.loads(text_of(tokens))
    assert list(ship) == ["name", "draught", "cargo"]
    assert len(ship["name"]) <= 12
    assert 0 <= ship["draught"] <= 99
    assert set(ship["cargo"]) <= {"tea", "iron"}
    free = run(engine, a_request("free", sampling, schema=None, max_tokens=50))["free"]
    assert not text_of(free).startswith("{"), "the model must not write JSON by itself"


@pytest.mark.parametrize("sampling", SAMPLING)
def test_an_answer_resumed_at_any_token_goes_on_as_if_undisturbed(
    engine: LoadedEngine, sampling: SamplingOptions
) -> None:
    whole = run(engine, a_request("whole", sampling))["whole"]
    cuts = sorted({1, 2, len(whole) // 3, len(whole) // 2, len(whole) - 1})
    resumed = [
        a_request(f"r{cut}", sampling, generated=tuple(t.token_id for t in whole[:cut]))
        for cut in cuts
    ]
    others = [a_request(f"other{number}", other) for number, other in enumerate(SAMPLING)]
    answers = run(engine, *others, *resumed)
    for cut in cuts:
        assert [(t.index, t.token_id, t.text, t.finish_reason) for t in answers[f"r{cut}"]] == [
            (t.index, t.token_id, t.text, t.finish_reason) for t in whole[cut:]
        ]


def test_several_answers_at_once_do_not_disturb_one_another(engine: LoadedEngine) -> None:
    seeded = [SamplingOptions(temperature=1.2, seed=seed) for seed in range(6)]
    alone = [run(engine, a_request("s", sampling))["s"] for sampling in seeded]
    free = a_request("free", SAMPLING[1], schema=None, max_tokens=80)
    together = run(engine, free, *(a_request(f"s{n}", s) for n, s in enumerate(seeded)))
    for number, answer in enumerate(alone):
        assert text_of(together[f"s{number}"]) == text_of(answer)
    assert len({text_of(answer) for answer in alone}) == 6
    unmixed = run(engine, free)["free"]
    assert [t.token_id for t in together["free"]] == [t.token_id for t in unmixed]


def test_a_sequence_preempted_and_recomputed_goes_on_under_its_grammar(
    engine: LoadedEngine, llama_folder: Path
) -> None:
    tight = load_engine(
        str(llama_folder),
        options=EngineOptions(dtype="float32", blocks_total=14, context_tokens_max=200),
    )
    requests = [
        a_request(f"s{seed}", SamplingOptions(temperature=1.0, seed=seed), max_tokens=100)
        for seed in range(5)
    ]
    roomy = run(engine, *requests)
    crowded = run(tight, *requests)
    for request in requests:
        name = request.sequence_id
        assert text_of(crowded[name]) == text_of(roomy[name])


def test_an_answer_out_of_tokens_says_so(engine: LoadedEngine) -> None:
    tokens = run(engine, a_request("s", SAMPLING[1], max_tokens=5))["s"]
    assert len(tokens) == 5
    assert tokens[-1].finish_reason == "length"
