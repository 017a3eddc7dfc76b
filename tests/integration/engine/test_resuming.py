"""A sampled sequence goes on elsewhere as if nothing had happened: tokens and text."""

from pathlib import Path
from random import Random

import pytest

from libs.engine.batch_run import run_to_completion
from libs.engine.loading import EngineOptions, LoadedEngine, load_engine
from libs.engine.requests import SamplingOptions, SequenceRequest, StopOptions
from libs.engine.scheduler import Scheduler
from libs.engine.steps import TokenEmitted

PROMPT = tuple(Random(3).randrange(1, 384) for _ in range(25))
SAMPLING = [
    SamplingOptions(),
    SamplingOptions(temperature=1.0, seed=11),
    SamplingOptions(temperature=0.8, top_k=20, top_p=0.9, seed=12),
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
    generated: tuple[int, ...] = (),
    stop_strings: tuple[str, ...] = (),
) -> SequenceRequest:
    return SequenceRequest(
        sequence_id=name,
        prompt_token_ids=PROMPT,
        generated_token_ids=generated,
        sampling=sampling,
        stop=StopOptions(max_tokens=60, ignore_eos=True, stop_strings=stop_strings),
    )


@pytest.mark.parametrize("sampling", SAMPLING)
@pytest.mark.parametrize("tokens_before", [1, 17, 59])
def test_the_rest_of_a_resumed_sequence_is_the_rest_of_the_undisturbed_one(
    engine: LoadedEngine, sampling: SamplingOptions, tokens_before: int
) -> None:
    whole = run(engine, a_request("whole", sampling))["whole"]
    generated = tuple(token.token_id for token in whole[:tokens_before])
    others = [a_request(f"other{number}", SAMPLING[1]) for number in range(3)]
    rest = run(engine, *others, a_request("rest", sampling, generated=generated))["rest"]
    assert [(t.index, t.token_id, t.text, t.finish_reason) for t in rest] == [
        (t.index, t.token_id, t.text, t.finish_reason) for t in whole[tokens_before:]
    ]


def test_the_text_is_what_the_tokenizer_says(engine: LoadedEngine) -> None:
    tokens = run(engine, a_request("s", SAMPLING[1]))["s"]
    expected = engine.tokenizer.decode([t.token_id for t in tokens], skip_special_tokens=True)
    assert "".join(token.text for token in tokens) == expected
    assert tokens[-1].finish_reason == "length"


def test_a_stop_string_ends_the_sequence_before_it(engine: LoadedEngine) -> None:
    whole = "".join(token.text for token in run(engine, a_request("s", SAMPLING[1]))["s"])
    stop = whole[30:33]
    tokens = run(engine, a_request("s", SAMPLING[1], stop_strings=(stop,)))["s"]
    assert "".join(token.text for token in tokens) == whole[: whole.index(stop)]
    assert tokens[-1].finish_reason == "stop"
    assert len(tokens) < 60


def test_different_seeds_give_different_text(engine: LoadedEngine) -> None:
    answers = run(
        engine,
        *(a_request(f"s{seed}", SamplingOptions(temperature=1.0, seed=seed)) for seed in range(5)),
    )
    assert len({tuple(t.token_id for t in tokens) for tokens in answers.values()}) == 5
