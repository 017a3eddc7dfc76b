"""A prompt's log probabilities are those of the model, however the prompt was computed."""

from pathlib import Path
from random import Random

import pytest
import torch
from transformers import AutoModelForCausalLM

from libs.contracts.online import TokenLogprobs
from libs.engine.batch_run import run_to_completion
from libs.engine.loading import EngineOptions, LoadedEngine, load_engine
from libs.engine.requests import SamplingOptions, SequenceRequest, StopOptions
from libs.engine.scheduler import Scheduler
from libs.engine.steps import TokenEmitted

PROMPT = tuple(Random(8).randrange(1, 384) for _ in range(50))


@pytest.fixture(scope="module")
def engine(llama_folder: Path) -> LoadedEngine:
    return load_engine(str(llama_folder), options=EngineOptions(dtype="float32"))


@pytest.fixture(scope="module")
def expected_TV(llama_folder: Path) -> torch.Tensor:
    """What transformers says of each prompt token but the first."""
    model = AutoModelForCausalLM.from_pretrained(llama_folder, dtype=torch.float32)
    with torch.no_grad():
        logits: torch.Tensor = model(torch.tensor([PROMPT])).logits[0, :-1]
    return logits.log_softmax(-1)


def a_request(
    name: str,
    *,
    prompt: tuple[int, ...] = PROMPT,
    best: int = 2,
    is_scored: bool = True,
    generated: tuple[int, ...] = (),
) -> SequenceRequest:
    return SequenceRequest(
        sequence_id=name,
        prompt_token_ids=prompt,
        generated_token_ids=generated,
        sampling=SamplingOptions(logprobs=best, prompt_logprobs=is_scored),
        stop=StopOptions(max_tokens=6, ignore_eos=True),
    )


def run(engine: LoadedEngine, *requests: SequenceRequest) -> dict[str, list[TokenEmitted]]:
    return run_to_completion(Scheduler(engine.scheduler_options), engine.runner, requests)


def scores_of(tokens: list[TokenEmitted]) -> tuple[TokenLogprobs, ...]:
    assert all(t.logprobs is not None and not t.logprobs.prompt for t in tokens[1:])
    assert tokens[0].logprobs is not None
    return tokens[0].logprobs.prompt


def assert_scores(scores: tuple[TokenLogprobs, ...], expected_TV: torch.Tensor) -> None:
    assert tuple(item.chosen.token_id for item in scores) == PROMPT
    assert scores[0].chosen.logprob == 0.0
    assert scores[0].best == ()
    for row, item in zip(expected_TV, scores[1:], strict=True):
        assert item.chosen.logprob == pytest.approx(float(row[item.chosen.token_id]), abs=1e-4)
        values = [best.logprob for best in item.best]
        assert values == pytest.approx(row.topk(2).values.tolist(), abs=1e-4)


def test_a_prompt_is_scored_as_transformers_scores_it(
    engine: LoadedEngine, expected_TV: torch.Tensor
) -> None:
    plain = a_request("plain", is_scored=False)
    other = a_request("other", prompt=PROMPT[7:], best=0)
    answers = run(engine, plain, a_request("s"), other)
    assert_scores(scores_of(answers["s"]), expected_TV)
    assert scores_of(answers["plain"]) == ()
    assert len(scores_of(answers["other"])) == len(PROMPT) - 7
    assert [t.token_id for t in answers["s"]] == [t.token_id for t in answers["plain"]]


def test_in_chunks_and_after_a_cached_prefix_the_scores_are_the_same(
    llama_folder: Path, expected_TV: torch.Tensor
) -> None:
    small = load_engine(
        str(llama_folder),
        options=EngineOptions(dtype="float32", step_tokens_max=12, sequences_max=4),
    )
    scheduler = Scheduler(small.scheduler_options)
    run_to_completion(scheduler, small.runner, [a_request("first", is_scored=False)])
    assert scheduler.prefix_hashes(4), "the prompt's blocks must be cached by now"
    scored = [a_request("s"), a_request("t")]
    answers = run_to_completion(scheduler, small.runner, scored)
    for name in ("s", "t"):
        assert_scores(scores_of(answers[name]), expected_TV)


def test_preempted_prompts_are_scored_whole(llama_folder: Path, expected_TV: torch.Tensor) -> None:
    tight = load_engine(
        str(llama_folder),
        options=EngineOptions(
            dtype="float32", blocks_total=15, block_tokens=8, step_tokens_max=16, sequences_max=3
        ),
    )
    answers = run(tight, *(a_request(f"s{number}") for number in range(5)))
    for tokens in answers.values():
        assert_scores(scores_of(tokens), expected_TV)


def test_a_sequence_resumed_after_its_first_token_scores_nothing_again(
    engine: LoadedEngine,
) -> None:
    whole = run(engine, a_request("s"))["s"]
    rest = run(engine, a_request("r", generated=(whole[0].token_id,)))["r"]
    assert [t.token_id for t in rest] == [t.token_id for t in whole[1:]]
    assert all(token.logprobs is not None and not token.logprobs.prompt for token in rest)


def test_a_prompt_of_one_token_has_nothing_to_score(engine: LoadedEngine) -> None:
    [given] = scores_of(run(engine, a_request("s", prompt=(5,)))["s"])
    assert (given.chosen.token_id, given.chosen.logprob) == (5, 0.0)
