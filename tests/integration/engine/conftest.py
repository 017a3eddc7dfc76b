"""Small random models in Hugging Face's format, and transformers' own answer for them."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from tests.integration.engine.replica_fleet import Fleet

VOCABULARY = 384
VARIANTS: dict[str, dict[str, object]] = {
    "llama": {"num_key_value_heads": 4},
    "llama_gqa": {"num_key_value_heads": 2},
    "llama_bias_llama3_rope_tied": {
        "num_key_value_heads": 1,
        "attention_bias": True,
        "mlp_bias": True,
        "tie_word_embeddings": True,
        "head_dim": 24,
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 10000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    },
    "qwen2": {"num_key_value_heads": 4},
    "qwen2_gqa": {"num_key_value_heads": 2},
    "mistral": {"num_key_value_heads": 2, "sliding_window": None, "head_dim": 20},
    "mistral_window": {"num_key_value_heads": 2, "sliding_window": 33},
    "qwen3": {"num_key_value_heads": 2, "head_dim": 24, "attention_bias": True},
    "neox": {},
    "neox_sequential": {
        "use_parallel_residual": False,
        "hidden_act": "gelu_new",
        "rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5},
    },
    "opt": {"ffn_dim": 128, "word_embed_proj_dim": 64},
    "opt_untied": {"ffn_dim": 128, "tie_word_embeddings": False, "enable_bias": False},
}
MODEL_CLASSES = {
    "llama": (LlamaConfig, LlamaForCausalLM),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),
    "mistral": (MistralConfig, MistralForCausalLM),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM),
    "neox": (GPTNeoXConfig, GPTNeoXForCausalLM),
    "opt": (OPTConfig, OPTForCausalLM),
}

Generate = Callable[[Path, tuple[int, ...], int], list[int]]


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="package")
def fleet() -> Iterator[Fleet]:
    """Processes that become members of one replica after another."""
    fleet = Fleet()
    yield fleet
    fleet.stop()


def _tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<eos>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["the tide comes in and the tide goes out, twice a day"], trainer)
    wrapped: PreTrainedTokenizerFast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<eos>"
    )  # type: ignore[no-untyped-call]
    return wrapped


def _save_model(folder: Path, variant: str) -> None:
    config_class, model_class = MODEL_CLASSES[variant.split("_")[0]]
    config = config_class(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=3,
        num_attention_heads=4,
        vocab_size=VOCABULARY,
        max_position_embeddings=512,
        bos_token_id=None,
        eos_token_id=None,
        **VARIANTS[variant],
    )
    torch.manual_seed(17)
    _save(folder, model_class(config))


def _save(folder: Path, model: PreTrainedModel) -> None:
    model.train(False)
    with torch.no_grad():
        # The usual small initialisation makes logits nearly equal and every bias zero.
        for name, parameter in model.named_parameters():
            if "norm" in name or "ln_" in name:
                parameter.add_(torch.randn_like(parameter) * 0.1)
            else:
                parameter.normal_(std=0.6 if "embed" in name or "wte" in name else 0.25)
    model.save_pretrained(folder)
    _tokenizer().save_pretrained(folder)


@pytest.fixture(scope="session", params=sorted(VARIANTS))
def model_folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Each variant's folder in turn."""
    folder = tmp_path_factory.mktemp(request.param)
    _save_model(folder, request.param)
    return folder


@pytest.fixture(scope="session")
def save_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[PretrainedConfig], Path]:
    """Save a random model of any configuration to a folder of its own."""

    def save(config: PretrainedConfig) -> Path:
        folder = tmp_path_factory.mktemp(config.model_type)
        torch.manual_seed(17)
        _save(folder, AutoModelForCausalLM.from_config(config))  # type: ignore[no-untyped-call]
        return folder

    return save


@pytest.fixture(scope="session")
def llama_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for what does not depend on the family; not to be written to."""
    folder = tmp_path_factory.mktemp("one_llama")
    _save_model(folder, "llama_gqa")
    return folder


@pytest.fixture(scope="session")
def generate() -> Generate:
    """Greedy tokens by transformers, computed once for each folder and prompt."""
    known: dict[tuple[Path, tuple[int, ...], int], list[int]] = {}

    def run(folder: Path, prompt: tuple[int, ...], new_tokens: int) -> list[int]:
        key = (folder, prompt, new_tokens)
        if key not in known:
            model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
            output = model.generate(  # type: ignore[misc]
                torch.tensor([prompt]),
                attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
                max_new_tokens=new_tokens,
                do_sample=False,
                pad_token_id=0,
            )
            known[key] = output[0, len(prompt) :].tolist()
        return known[key]

    return run
