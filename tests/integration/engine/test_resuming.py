"""A sampled sequence goes on elsewhere as if nothing had happened: tokens and text."""

import math
from pathlib import Path
from random import Random

import pytest
import torch
from transformers import AutoModelForCausalLM

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
    SamplingOptions(temperature=1.5, min_p=0.05, presence_penalty=0.7, seed=13),
    SamplingOptions(repetition_penalty=1.3, logprobs=0),
    SamplingOptions(frequency_penalty=0.9, logit_bias=((7, 4.0), (9, -100.0)), logprobs=3),
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
    stop_token_ids: tuple[int, ...] = (),
    min_tokens: int = 0,
) -> SequenceRequest:
    return SequenceRequest(
        sequence_id=name,
        prompt_token_ids=PROMPT,
        generated_token_ids=generated,
        sampling=sampling,
        stop=StopOptions(
            max_tokens=60,
            ignore_eos=True,
            stop_strings=stop_strings,
            stop_token_ids=frozenset(stop_token_ids),
            min_tokens=min_tokens,
        ),
    )


@pytest.mark.parametrize("sampling", SAMPLING)
@pytest.mark.parametrize("tokens_before", [1, 17, 59])
def test_the_rest_of_a_resumed_sequence_is_the_rest_of_the_undisturbed_one(
    engine: LoadedEngine, sampling: SamplingOptions, tokens_before: int
) -> None:
    whole = run(engine, a_request("whole", sampling))["whole"]
    generated = tuple(token.token_id for token in whole[:tokens_before])
    others = [a_request(f"other{number}", SAMPLING[number]) for number in range(len(SAMPLING))]
    rest = run(engine, *others, a_request("rest", sampling, generated=generated))["rest"]
    assert [(t.index, t.token_id, t.text, t.finish_reason) for t in rest] == [
        (t.index, t.token_id, t.text, t.finish_reason) for t in whole[tokens_before:]
    ]
    for one, other in zip(rest, whole[tokens_before:], strict=True):
        assert (one.logprobs is None) == (sampling.logprobs is None)
        if one.logprobs is not None and other.logprobs is not None:
            assert one.logprobs.chosen.logprob == pytest.approx(
                other.logprobs.chosen.logprob, abs=1e-4
            )
            assert [best.token_id for best in one.logprobs.best] == [
                best.token_id for best in other.logprobs.best
            ]


@pytest.mark.parametrize("penalty", [1.3, 0.8])
def test_a_repetition_penalty_does_what_it_does_in_transformers(
    engine: LoadedEngine, llama_folder: Path, penalty: float
) -> None:
    model = AutoModelForCausalLM.from_pretrained(llama_folder, dtype=torch.float32)
    output = model.generate(  # type: ignore[misc]
        torch.tensor([PROMPT]),
        attention_mask=torch.ones(1, len(PROMPT), dtype=torch.int64),
        max_new_tokens=60,
        do_sample=False,
        repetition_penalty=penalty,
        pad_token_id=0,
    )
    sampling = SamplingOptions(repetition_penalty=penalty)
    others = [a_request(f"other{number}", SAMPLING[number]) for number in range(3)]
    got = run(engine, *others, a_request("s", sampling))["s"]
    assert [token.token_id for token in got] == output[0, len(PROMPT) :].tolist()
    plain = run(engine, a_request("s", SamplingOptions()))["s"]
    assert [token.token_id for token in plain] != [token.token_id for token in got]


def test_log_probabilities_are_those_of_the_model_before_penalties(
    engine: LoadedEngine, llama_folder: Path
) -> None:
    sampling = SamplingOptions(
        temperature=1.0, seed=4, logprobs=5, presence_penalty=2.0, logit_bias=((3, 9.0),)
    )
    tokens = run(engine, a_request("other", SAMPLING[1]), a_request("s", sampling))["s"]
    answer = [token.token_id for token in tokens]
    model = AutoModelForCausalLM.from_pretrained(llama_folder, dtype=torch.float32)
    with torch.no_grad():
        logits = model(torch.tensor([[*PROMPT, *answer]])).logits[0, len(PROMPT) - 1 : -1]
    expected = logits.log_softmax(-1)
    for row, token in zip(expected, tokens, strict=True):
        assert token.logprobs is not None
        chosen, best = token.logprobs.chosen, token.logprobs.best
        assert chosen.token_id == token.token_id
        assert chosen.logprob == pytest.approx(float(row[token.token_id]), abs=1e-4)
        assert chosen.text == engine.tokenizer.decode([token.token_id], skip_special_tokens=True)
        assert [b.logprob for b in best] == pytest.approx(row.topk(5).values.tolist(), abs=1e-4)
        assert math.isclose(float(row[best[0].token_id]), best[0].logprob, abs_tol=1e-4)


def test_a_stop_token_of_the_request_ends_it_but_not_before_min_tokens(
    engine: LoadedEngine,
) -> None:
    whole = run(engine, a_request("s", SAMPLING[1]))["s"]
    stop_token_id = whole[10].token_id
    first = [token.token_id for token in whole].index(stop_token_id)
    short = run(engine, a_request("s", SAMPLING[1], stop_token_ids=(stop_token_id,)))["s"]
    assert [t.token_id for t in short] == [t.token_id for t in whole[: first + 1]]
    assert short[-1].finish_reason == "stop"
    assert "".join(t.text for t in short) == engine.tokenizer.decode(
        [t.token_id for t in whole[:first]], skip_special_tokens=True
    )
    longer = run(
        engine,
        a_request("s", SAMPLING[1], stop_token_ids=(stop_token_id,), min_tokens=first + 1),
    )["s"]
    assert len(longer) > first + 1
    assert stop_token_id not in [t.token_id for t in longer[: first + 1]]


def test_a_stop_string_counts_only_after_min_tokens(engine: LoadedEngine) -> None:
    whole = run(engine, a_request("s", SAMPLING[1]))["s"]
    text = "".join(token.text for token in whole)
    early = "".join(token.text for token in whole[:30])
    stop = text[5:7]
    assert stop in early
    tokens = run(engine, a_request("s", SAMPLING[1], stop_strings=(stop,), min_tokens=30))["s"]
    assert len(tokens) > 30
    got = "".join(token.text for token in tokens)
    later = text.find(stop, len(early))
    assert got == (text if later < 0 else text[:later])


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
