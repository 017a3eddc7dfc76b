"""What the compact decoder does not know runs through transformers, or is refused."""

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from transformers import (
    BertConfig,
    BloomConfig,
    Gemma2Config,
    GPT2Config,
    GptOssConfig,
    GraniteConfig,
    Lfm2Config,
    LlamaConfig,
    MambaConfig,
    MixtralConfig,
    OPTConfig,
    Phi3Config,
    PretrainedConfig,
    Qwen2Config,
)

from libs.engine.loading import EngineOptions, LoadedEngine, load_engine
from libs.engine.model_config import ModelLoadError, VariantNotSupported, read_model_config
from libs.engine.requests import SamplingOptions, SequenceRequest, StopOptions
from libs.engine.scheduler import Scheduler
from libs.engine.steps import TokenEmitted

Generate = Callable[[Path, tuple[int, ...], int], list[int]]
SaveModel = Callable[[PretrainedConfig], Path]
NEW_TOKENS = 130
DENSE: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 384,
    "max_position_embeddings": 512,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}
CONFIGS: dict[str, Callable[[], PretrainedConfig]] = {
    "gpt2": lambda: GPT2Config(
        n_embd=64, n_layer=3, n_head=4, vocab_size=384, n_positions=512, bos_token_id=None,
        eos_token_id=None, tie_word_embeddings=False,
    ),
    "gpt2_scaled_by_layer": lambda: GPT2Config(
        n_embd=64, n_layer=3, n_head=4, vocab_size=384, n_positions=512, bos_token_id=None,
        eos_token_id=None, scale_attn_by_inverse_layer_idx=True,
        tie_word_embeddings=False,
    ),
    "phi3": lambda: Phi3Config(**DENSE),
    "phi3_window": lambda: Phi3Config(**DENSE, sliding_window=21),
    "gemma2": lambda: Gemma2Config(
        **DENSE, head_dim=16, query_pre_attn_scalar=24, sliding_window=27,
        attn_logit_softcapping=5.0, final_logit_softcapping=8.0,
        tie_word_embeddings=False,
    ),
    "granite": lambda: GraniteConfig(
        **DENSE, attention_multiplier=0.1, logits_scaling=3.0, residual_multiplier=0.7,
        embedding_multiplier=2.0,
    ),
    "mixtral": lambda: MixtralConfig(**DENSE, num_local_experts=4, num_experts_per_tok=2),
    "llama_yarn": lambda: LlamaConfig(**DENSE, rope_parameters={"rope_theta": 1e4, **YARN}),
    "qwen2_window": lambda: Qwen2Config(
        **DENSE, use_sliding_window=True, sliding_window=25, max_window_layers=1
    ),
    "opt_projected": lambda: OPTConfig(
        hidden_size=64, ffn_dim=128, num_hidden_layers=3, num_attention_heads=4, vocab_size=384,
        max_position_embeddings=512, bos_token_id=None, eos_token_id=None, pad_token_id=None,
        word_embed_proj_dim=48, tie_word_embeddings=False,
    ),
}  # fmt: skip


def a_prompt(tokens: int, *, seed: int = 5) -> tuple[int, ...]:
    rng = Random(seed * 1000 + tokens)
    return tuple(rng.randrange(1, 384) for _ in range(tokens))


def a_request(
    name: str, prompt: tuple[int, ...], *, generated: tuple[int, ...] = ()
) -> SequenceRequest:
    return SequenceRequest(
        sequence_id=name,
        prompt_token_ids=prompt,
        generated_token_ids=generated,
        sampling=SamplingOptions(),
        stop=StopOptions(max_tokens=NEW_TOKENS, ignore_eos=True),
    )


def tokens_of(
    engine: LoadedEngine, scheduler: Scheduler, *requests: SequenceRequest
) -> tuple[dict[str, list[int]], dict[str, list[int]]]:
    """Return tokens by sequence, and the position at which each of its entries started."""
    emitted: list[TokenEmitted] = []
    starts: dict[str, list[int]] = {request.sequence_id: [] for request in requests}
    for request in requests:
        scheduler.add(request, now_ns=0)
    while (plan := scheduler.schedule(now_ns=0)) is not None:
        for entry in plan.entries:
            starts[entry.sequence_id].append(entry.start_position)
        emitted += scheduler.account(engine.runner.run(plan), now_ns=0)
    tokens = {
        name: [token.token_id for token in emitted if token.sequence_id == name] for name in starts
    }
    return tokens, starts


@pytest.fixture(scope="module", params=sorted(CONFIGS))
def folder(request: pytest.FixtureRequest, save_model: SaveModel) -> Path:
    """Each model's folder in turn."""
    return save_model(CONFIGS[request.param]())


def test_a_mixed_batch_with_chunks_a_prefix_hit_and_evictions(
    folder: Path, generate: Generate
) -> None:
    engine = load_engine(
        str(folder),
        options=EngineOptions(
            dtype="float32", blocks_total=26, step_tokens_max=24, sequences_max=5
        ),
    )
    prompts = {f"s{tokens}": a_prompt(tokens) for tokens in (1, 16, 40, 60)}
    prompts["again"] = (*prompts["s60"][:48], *a_prompt(9, seed=6))
    scheduler = Scheduler(engine.scheduler_options)
    requests = [a_request(name, prompt) for name, prompt in prompts.items()]
    got, starts = tokens_of(engine, scheduler, *requests)
    everything = [start for each in starts.values() for start in each]
    assert any(0 < start < 60 for start in starts["s60"]), "nothing was chunked"
    assert any(after < before for each in starts.values() for before, after in pairwise(each)), (
        "nothing was preempted"
    )
    assert max(everything) > 150
    for name, prompt in prompts.items():
        assert got[name] == generate(folder, prompt, NEW_TOKENS), name
    hit, starts = tokens_of(engine, scheduler, a_request("hit", prompts["s60"]))
    assert starts["hit"][0] > 0, "the prefix was not cached"
    assert hit["hit"] == got["s60"]


def test_a_sequence_alone_and_one_resumed(folder: Path, generate: Generate) -> None:
    engine = load_engine(str(folder), options=EngineOptions(dtype="float32"))
    prompt = a_prompt(20)
    expected = generate(folder, prompt, NEW_TOKENS)
    scheduler = Scheduler(engine.scheduler_options)
    alone, _ = tokens_of(engine, scheduler, a_request("s", prompt))
    assert alone["s"] == expected
    assert len(set(expected)) > 10, "the model repeats itself: the comparison would show little"
    rest = a_request("s", prompt, generated=tuple(expected[:61]))
    resumed, _ = tokens_of(engine, Scheduler(engine.scheduler_options), rest)
    assert resumed["s"] == expected[61:]


@pytest.mark.parametrize(
    ("field", "value"), [("sliding_window", 26), ("attn_logit_softcapping", 5.2)]
)
def test_a_slightly_different_attention_is_noticed(
    save_model: SaveModel, generate: Generate, field: str, value: float
) -> None:
    """The negative control: the comparison above fails for a model that is off by a little."""
    folder = save_model(CONFIGS["gemma2"]())
    prompt = a_prompt(40)
    expected = generate(folder, prompt, NEW_TOKENS)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {field: value}))
    engine = load_engine(str(folder), options=EngineOptions(dtype="float32"))
    got, _ = tokens_of(engine, Scheduler(engine.scheduler_options), a_request("s", prompt))
    assert got["s"] != expected


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (lambda: MambaConfig(hidden_size=32, vocab_size=384), "is not replaceable"),
        (
            lambda: BloomConfig(hidden_size=32, n_layer=2, n_head=2, vocab_size=384),
            "is not replaceable",
        ),
        (
            lambda: GptOssConfig(**(DENSE | {"eos_token_id": 1}), num_local_experts=4),
            "sinks, which are not supported",
        ),
        (
            lambda: Phi3Config(
                **DENSE,
                original_max_position_embeddings=256,
                rope_parameters={
                    "rope_type": "longrope",
                    "rope_theta": 1e4,
                    "short_factor": [1.0] * 8,
                    "long_factor": [2.0] * 8,
                },
            ),
            "rope type 'longrope' is not supported",
        ),
        (
            lambda: BertConfig(**(DENSE | {"pad_token_id": 0})),
            "its attention does more than is supported: logits are off",
        ),
        (
            lambda: Lfm2Config(**(DENSE | {"pad_token_id": 0}), full_attn_idxs=[0, 2]),
            "not each of its layers has one attention of its own",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_served_right_is_refused_with_the_reason(
    save_model: SaveModel, config: Callable[[], PretrainedConfig], words: str
) -> None:
    folder = save_model(config())
    with pytest.raises(ModelLoadError) as raised:
        load_engine(str(folder), options=EngineOptions(dtype="float32"))
    assert words in str(raised.value)
    assert "nor can transformers stand in" in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_folder_with_code_of_its_own_is_refused(save_model: SaveModel) -> None:
    folder = save_model(CONFIGS["granite"]())
    config = json.loads((folder / "config.json").read_text())
    changes = {"model_type": "my_own", "auto_map": {"AutoConfig": "mine.MyConfig"}}
    (folder / "config.json").write_text(json.dumps(config | changes))
    (folder / "mine.py").write_text("raise SystemExit('this code was run')\n")
    with pytest.raises(ModelLoadError, match="my_own"):
        load_engine(str(folder), options=EngineOptions())


def test_a_checkpoint_that_lacks_a_tensor_is_refused(save_model: SaveModel) -> None:
    folder = save_model(CONFIGS["granite"]())
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 4}))
    with pytest.raises(ModelLoadError, match=r"tensor model.layers.3.* is in none of the files"):
        load_engine(str(folder), options=EngineOptions())


def test_bfloat16_is_served_too(save_model: SaveModel) -> None:
    engine = load_engine(
        str(save_model(CONFIGS["phi3"]())), options=EngineOptions(dtype="bfloat16")
    )
    assert engine.dtype == torch.bfloat16
    got, _ = tokens_of(engine, Scheduler(engine.scheduler_options), a_request("s", a_prompt(20)))
    assert len(got["s"]) == NEW_TOKENS


def test_the_compact_decoder_is_preferred(save_model: SaveModel) -> None:
    folder = save_model(LlamaConfig(**DENSE))
    assert read_model_config(folder).family.model_type == "llama"
    with pytest.raises(VariantNotSupported):
        read_model_config(save_model(CONFIGS["llama_yarn"]()))
