"""Greedy output in fp32 equals transformers' generate token for token, however it is batched."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from random import Random

import pytest
import torch
from safetensors.torch import load_file, save_file

from libs.engine.batch_run import run_to_completion
from libs.engine.loading import EngineOptions, LoadedEngine, load_engine
from libs.engine.requests import SamplingOptions, SequenceRequest, StopOptions
from libs.engine.scheduler import Scheduler
from libs.engine.steps import StepPlan, StepResult

Generate = Callable[[Path, tuple[int, ...], int], list[int]]
NEW_TOKENS = 130


def a_prompt(tokens: int, *, seed: int = 5) -> tuple[int, ...]:
    rng = Random(seed * 1000 + tokens)
    return tuple(rng.randrange(1, 384) for _ in range(tokens))


def a_request(name: str, prompt: tuple[int, ...], **changes: object) -> SequenceRequest:
    return SequenceRequest(
        sequence_id=name,
        prompt_token_ids=prompt,
        generated_token_ids=changes.get("generated", ()),  # type: ignore[arg-type]
        sampling=SamplingOptions(),
        stop=StopOptions(max_tokens=NEW_TOKENS, ignore_eos=True),
    )


@dataclass
class WatchedRunner:
    """The real runner, with the plans kept, so that a test can prove what was exercised."""

    engine: LoadedEngine
    plans: list[StepPlan] = field(default_factory=list)

    def run(self, plan: StepPlan) -> StepResult:
        self.plans.append(plan)
        return self.engine.runner.run(plan)

    def starts_of(self, sequence_id: str) -> list[int]:
        return [
            entry.start_position
            for plan in self.plans
            for entry in plan.entries
            if entry.sequence_id == sequence_id
        ]


def an_engine(folder: Path, **options: object) -> tuple[Scheduler, WatchedRunner]:
    engine = load_engine(
        str(folder),
        options=EngineOptions(dtype="float32", **options),  # type: ignore[arg-type]
    )
    return Scheduler(engine.scheduler_options), WatchedRunner(engine)


def tokens_of(
    scheduler: Scheduler, runner: WatchedRunner, requests: list[SequenceRequest]
) -> dict[str, list[int]]:
    emitted = run_to_completion(scheduler, runner, requests)
    scheduler.check_invariants()
    return {name: [token.token_id for token in tokens] for name, tokens in emitted.items()}


def test_a_sequence_alone(model_folder: Path, generate: Generate) -> None:
    prompt = a_prompt(20)
    got = tokens_of(*an_engine(model_folder), [a_request("s", prompt)])
    assert got["s"] == generate(model_folder, prompt, NEW_TOKENS)
    assert len(set(got["s"])) > 20, "the model repeats itself: the comparison would show little"


def test_a_batch_of_mixed_lengths(model_folder: Path, generate: Generate) -> None:
    prompts = {f"s{tokens}": a_prompt(tokens) for tokens in (1, 2, 15, 16, 17, 90)}
    requests = [a_request(name, prompt) for name, prompt in prompts.items()]
    got = tokens_of(*an_engine(model_folder), requests)
    for name, prompt in prompts.items():
        assert got[name] == generate(model_folder, prompt, NEW_TOKENS), name


def test_chunked_prefill(model_folder: Path, generate: Generate) -> None:
    prompts = {f"s{tokens}": a_prompt(tokens) for tokens in (2, 17, 90)}
    scheduler, runner = an_engine(model_folder, step_tokens_max=7, sequences_max=3)
    got = tokens_of(scheduler, runner, [a_request(n, p) for n, p in prompts.items()])
    assert len([start for start in runner.starts_of("s90") if start < 90]) > 10
    for name, prompt in prompts.items():
        assert got[name] == generate(model_folder, prompt, NEW_TOKENS), name


def test_a_prefix_cache_hit(model_folder: Path, generate: Generate) -> None:
    first = a_prompt(50)
    second = (*first[:40], *a_prompt(30, seed=6))
    scheduler, runner = an_engine(model_folder)
    tokens_of(scheduler, runner, [a_request("first", first)])
    got = tokens_of(scheduler, runner, [a_request("second", second), a_request("again", first)])
    assert runner.starts_of("second")[0] == 32
    assert runner.starts_of("again")[0] == 48
    assert got["second"] == generate(model_folder, second, NEW_TOKENS)
    assert got["again"] == generate(model_folder, first, NEW_TOKENS)


@pytest.mark.parametrize("enable_prefix_cache", [True, False])
def test_an_eviction(model_folder: Path, generate: Generate, enable_prefix_cache: bool) -> None:
    prompts = {f"s{tokens}": a_prompt(tokens) for tokens in (30, 31, 40, 60)}
    scheduler, runner = an_engine(
        model_folder, blocks_total=24, enable_prefix_cache=enable_prefix_cache
    )
    got = tokens_of(scheduler, runner, [a_request(n, p) for n, p in prompts.items()])
    starts = [start for name in prompts for start in falls_of(runner.starts_of(name))]
    assert starts, "nothing was preempted"
    for name, prompt in prompts.items():
        assert got[name] == generate(model_folder, prompt, NEW_TOKENS), name


def falls_of(values: list[int]) -> list[int]:
    return [after for before, after in pairwise(values) if after < before]


def test_a_sequence_resumed_from_its_tokens(model_folder: Path, generate: Generate) -> None:
    prompt = a_prompt(20)
    expected = generate(model_folder, prompt, NEW_TOKENS)
    request = a_request("s", prompt, generated=tuple(expected[:61]))
    got = tokens_of(*an_engine(model_folder), [request])
    assert got["s"] == expected[61:]


def test_many_long_sequences_are_attended_one_by_one(
    llama_folder: Path, generate: Generate
) -> None:
    # 24 sequences of up to 300 positions exceed what is gathered in one piece.
    prompts = {f"s{number}": a_prompt(170, seed=number) for number in range(24)}
    scheduler, runner = an_engine(llama_folder, step_tokens_max=1024)
    got = tokens_of(scheduler, runner, [a_request(n, p) for n, p in prompts.items()])
    for name in ("s0", "s11", "s23"):
        assert got[name] == generate(llama_folder, prompts[name], NEW_TOKENS), name


def test_a_perturbed_weight_is_noticed(
    llama_folder: Path, tmp_path: Path, generate: Generate
) -> None:
    """The negative control: the comparison fails if one layer is off by a percent."""
    folder = shutil.copytree(llama_folder, tmp_path / "perturbed")
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.mlp.down_proj.weight"] *= 1.01
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    prompt = a_prompt(20)
    got = tokens_of(*an_engine(folder), [a_request("s", prompt)])
    assert got["s"] != generate(llama_folder, prompt, NEW_TOKENS)


def test_a_wrong_rotation_is_noticed(
    llama_folder: Path, tmp_path: Path, generate: Generate
) -> None:
    folder = shutil.copytree(llama_folder, tmp_path / "turned")
    config = json.loads((folder / "config.json").read_text())
    config["rope_parameters"]["rope_theta"] = 11_000.0
    (folder / "config.json").write_text(json.dumps(config))
    prompt = a_prompt(20)
    got = tokens_of(*an_engine(folder), [a_request("s", prompt)])
    assert got["s"] != generate(llama_folder, prompt, NEW_TOKENS)


def test_bfloat16_logits_stay_near_those_of_transformers(
    llama_folder: Path, generate: Generate
) -> None:
    """In bf16 tokens may differ at near ties; the first of many prompts mostly do not."""
    engine = load_engine(str(llama_folder), options=EngineOptions(dtype="bfloat16"))
    assert engine.dtype == torch.bfloat16
    prompts = {f"s{number}": a_prompt(25, seed=number) for number in range(20)}
    emitted = run_to_completion(
        Scheduler(engine.scheduler_options),
        engine.runner,
        [a_request(name, prompt) for name, prompt in prompts.items()],
    )
    agreeing = [
        name
        for name, prompt in prompts.items()
        if emitted[name][0].token_id == generate(llama_folder, prompt, 1)[0]
    ]
    assert len(agreeing) >= 15
