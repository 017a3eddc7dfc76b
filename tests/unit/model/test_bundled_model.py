"""The bundled model is small, loads without a network, speaks peakedly and stops by itself."""

# ruff: noqa: RUF001  (other alphabets are meant)
import json
from functools import cache
from pathlib import Path

import jinja2
import pytest
import torch
from transformers import PreTrainedModel
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

FOLDER_BYTES_MAX = 4_000_000
TOP_PROBABILITY_MEAN_MIN = 0.95
"""Measured: 0.994. A version trained on a quarter of the tokens had 0.36."""

QUESTIONS = (
    "What does str.split do?",
    "What does json.dumps do?",
    "Explain itertools.chain.",
    "Tell me about the heapq module.",
    "What is TideServe?",
    "Who are you?",
    "Count to 100.",
)

TEXTS = (
    "plain words, and (some) punctuation!",
    "  leading, trailing and   inner spaces  ",
    "tabs\tand\r\nline ends\n\n",
    "digits 1234567890 and 3.14",
    "γειά σου, привет, 你好, नमस्ते, مرحبا",
    "emoji 👋🏽 and a family 👨\u200d👩\u200d👧",
    "e\u0301 is not \u00e9",
    "\x00\x7f\u2028\U0010ffff",
)


def prompt_ids(tokenizer: PreTrainedTokenizerBase, question: str) -> torch.Tensor:
    message = [{"role": "user", "content": question}]
    text = tokenizer.apply_chat_template(message, add_generation_prompt=True, tokenize=False)
    return torch.tensor([tokenizer.encode(text, add_special_tokens=False)])


@cache
def greedy_answer(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, question: str
) -> tuple[int, ...]:
    ids = prompt_ids(tokenizer, question)
    whole = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=500)
    return tuple(whole[0, ids.shape[1] :].tolist())


def test_the_folder_stays_under_four_megabytes(folder: Path) -> None:
    assert sum(path.stat().st_size for path in folder.rglob("*")) < FOLDER_BYTES_MAX


def test_the_weights_are_safetensors_and_nothing_in_the_folder_is_executable(folder: Path) -> None:
    suffixes = {path.suffix for path in folder.iterdir()}
    assert suffixes <= {".json", ".md", ".safetensors"}


def test_heads_and_layers_divide_for_tensor_and_pipeline_parallel_shapes(folder: Path) -> None:
    shape = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert shape["num_key_value_heads"] % 4 == 0
    assert shape["num_hidden_layers"] % 4 == 0
    assert shape["num_attention_heads"] % shape["num_key_value_heads"] == 0
    assert shape["max_position_embeddings"] == 2048


def test_generation_ends_at_the_end_of_a_turn_or_of_the_text(
    folder: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    settings = json.loads((folder / "generation_config.json").read_text(encoding="utf-8"))
    expected = tokenizer.convert_tokens_to_ids(["<|end|>", "<|endoftext|>"])
    assert settings["eos_token_id"] == expected


@pytest.mark.parametrize("text", TEXTS)
def test_any_text_round_trips_through_the_tokenizer(
    tokenizer: PreTrainedTokenizerBase, text: str
) -> None:
    ids = tokenizer.encode(text, add_special_tokens=True)
    assert tokenizer.decode(ids) == text


def test_special_tokens_are_one_token_each(tokenizer: PreTrainedTokenizerBase) -> None:
    specials = ["<|endoftext|>", "<|end|>", "<|pad|>", "<|system|>", "<|user|>", "<|assistant|>"]
    assert [tokenizer.encode(token) for token in specials] == [[index] for index in range(6)]


def test_the_chat_template_renders_turns_and_leaves_the_answer_open(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hi."},
        {"role": "user", "content": "What is math.pi?"},
    ]
    rendered = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    assert rendered == (
        "<|system|>\nBe brief.<|end|>\n<|user|>\nHello<|end|>\n<|assistant|>\nHi.<|end|>\n"
        "<|user|>\nWhat is math.pi?<|end|>\n<|assistant|>\n"
    )


def test_the_chat_template_refuses_an_unknown_role(tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(jinja2.TemplateError, match="unknown role: critic"):
        tokenizer.apply_chat_template([{"role": "critic", "content": "no"}], tokenize=False)


def test_distributions_are_peaked_where_the_model_has_been_trained(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    probabilities: list[torch.Tensor] = []
    for question in QUESTIONS:
        prompt = prompt_ids(tokenizer, question)
        answer = torch.tensor([greedy_answer(model, tokenizer, question)])
        with torch.no_grad():
            logits = model(input_ids=torch.cat((prompt, answer), dim=1)).logits
        answered = logits[0, prompt.shape[1] - 1 : -1].softmax(-1)
        probabilities.append(answered.max(-1).values)
    assert torch.cat(probabilities).mean().item() > TOP_PROBABILITY_MEAN_MIN


@pytest.mark.parametrize("question", QUESTIONS)
def test_an_answer_ends_by_itself(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, question: str
) -> None:
    answer = greedy_answer(model, tokenizer, question)
    assert answer[-1] == tokenizer.convert_tokens_to_ids("<|end|>")
    assert 10 <= len(answer) < 500


def test_an_answer_is_the_documentation_of_what_was_asked(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    answer = tokenizer.decode(greedy_answer(model, tokenizer, "What does json.dumps do?"))
    assert answer.startswith("json.dumps is a function of the module json.")
    assert "Serialize ``obj`` to a JSON formatted ``str``" in answer


def test_counting_to_a_hundred_skips_and_repeats_nothing(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    answer = tokenizer.decode(greedy_answer(model, tokenizer, "Count to 100."))
    assert answer == ", ".join(map(str, range(1, 101))) + ".<|end|>"


def test_running_past_every_stop_to_the_end_of_the_context_stays_legible(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    """What ignore_eos does: the model goes on with documents that it was trained on."""
    ids = prompt_ids(tokenizer, "Tell me about the heapq module.")
    whole = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=1200,
        eos_token_id=None,
        do_sample=False,
    )
    answer = whole[0, ids.shape[1] :]
    assert len(answer) == 1200
    with torch.no_grad():
        logits = model(input_ids=whole).logits
    late = logits[0, -401:-1].softmax(-1)
    assert torch.isfinite(logits).all()
    assert late.max(-1).values.mean().item() > 0.5
    assert len(set(answer[-400:].tolist())) > 40, "stuck in a loop"
