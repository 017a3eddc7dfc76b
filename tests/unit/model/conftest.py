"""The bundled model's folder, loaded once, without the network."""

import os
from pathlib import Path

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

FOLDER = Path(__file__).resolve().parents[3] / "models" / "tide-tiny"


@pytest.fixture(scope="session")
def folder() -> Path:
    """The bundled model's folder."""
    return FOLDER


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerBase:
    """The bundled tokenizer, as any transformers user loads it."""
    return AutoTokenizer.from_pretrained(FOLDER)


@pytest.fixture(scope="session")
def model() -> PreTrainedModel:
    """The bundled model in fp32, on one thread."""
    torch.set_num_threads(1)
    return AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32).eval()
