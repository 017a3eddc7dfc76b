"""The training text is deterministic and well-formed; the script trains and writes a folder."""

import hashlib
import os
import subprocess
import sys
from itertools import islice
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tools.tiny_corpus import Chat, Entry, collect_entries, documents
from tools.tiny_small_talk import SMALL_TALK
from tools.tiny_tokenizer import render, save_tokenizer, train_tokenizer
from tools.train_tiny_model import (
    TrainingOptions,
    packed_rows,
    save_model,
    train,
)

ROOT = Path(__file__).resolve().parents[3]
DIGEST_PROGRAM = """
import hashlib
from itertools import islice
from tools.tiny_corpus import collect_entries, documents
from tools.tiny_tokenizer import render
stream = documents(collect_entries(), seed=7)
print(hashlib.sha256("".join(map(render, islice(stream, 300))).encode()).hexdigest())
"""


@pytest.fixture(scope="module")
def entries() -> list[Entry]:
    """The documented names of the running Python's standard library."""
    return collect_entries()


def digest_in_a_fresh_process(hash_seed: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", DIGEST_PROGRAM],
        cwd=ROOT,
        env={**os.environ, "PYTHONHASHSEED": hash_seed},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()


def test_documents_are_equal_in_every_process_of_one_seed(entries: list[Entry]) -> None:
    here = "".join(render(document) for document in islice(documents(entries, seed=7), 300))
    digest = hashlib.sha256(here.encode()).hexdigest()
    assert digest_in_a_fresh_process("1") == digest
    assert digest_in_a_fresh_process("2") == digest


def test_another_seed_gives_other_documents(entries: list[Entry]) -> None:
    first = list(islice(documents(entries, seed=7), 20))
    assert list(islice(documents(entries, seed=8), 20)) != first


def test_entries_cover_what_a_demo_asks_for(entries: list[Entry]) -> None:
    names = {entry.name for entry in entries}
    assert {"str.split", "json.dumps", "itertools.chain", "heapq", "len", "math.sqrt"} <= names
    assert 900 <= len(names) == len(entries)


def test_entries_show_no_memory_address_and_only_ascii(entries: list[Entry]) -> None:
    for entry in entries:
        assert entry.answer.isascii()
        assert " at 0x" not in entry.answer
        assert len(entry.answer) < 1200


def test_every_entry_is_asked_in_one_pass(entries: list[Entry]) -> None:
    asked: set[str] = set()
    for document in islice(documents(entries, seed=1), 3 * len(entries)):
        if isinstance(document, Chat):
            asked.update(turn.answer for turn in document.turns)
    assert {entry.answer for entry in entries} <= asked


def test_a_chat_is_rendered_as_the_chat_template_renders_it(
    entries: list[Entry], folder: Path
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    chats = [d for d in islice(documents(entries, seed=3), 60) if isinstance(d, Chat)]
    assert any(chat.system for chat in chats)
    for chat in chats:
        messages = [] if chat.system is None else [{"role": "system", "content": chat.system}]
        for turn in chat.turns:
            messages.append({"role": "user", "content": turn.question})
            messages.append({"role": "assistant", "content": turn.answer})
        templated = tokenizer.apply_chat_template(messages, tokenize=False)
        assert render(chat) == f"{templated}<|endoftext|>"


def test_small_talk_asks_each_question_once() -> None:
    questions = [question for phrasings, _ in SMALL_TALK for question in phrasings]
    assert len(questions) == len(set(questions))


def test_rows_have_one_width_and_begin_at_a_document(entries: list[Entry]) -> None:
    texts = [entry.answer for entry in entries[:200]]
    tokenizer = train_tokenizer(texts, vocabulary_size=600)
    rows = list(islice(packed_rows(documents(entries, seed=1), tokenizer, row_tokens=256), 40))
    starts = {tokenizer.token_to_id("<|user|>"), tokenizer.token_to_id("<|system|>")}
    help_id = tokenizer.encode("Help").ids[0]
    assert {len(row) for row in rows} == {257}
    assert {row[0] for row in rows} <= starts | {help_id}


def test_the_learning_rate_warms_up_and_ends_near_zero() -> None:
    options = TrainingOptions(steps=100, warmup_steps=10, learning_rate=1.0)
    rates = [options.learning_rate_at(step) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == rates[9]
    assert rates[-1] < 0.001


def test_a_few_steps_lower_the_loss_and_leave_a_folder_that_loads(
    entries: list[Entry], tmp_path: Path
) -> None:
    options = TrainingOptions(
        steps=12,
        tokens_per_step=512,
        row_tokens=128,
        steps_per_long_step=None,
        learning_rate=4e-3,
        warmup_steps=2,
        vocabulary_size=600,
        threads=1,
    )
    texts = [entry.answer for entry in entries[:200]]
    tokenizer = train_tokenizer(texts, vocabulary_size=600)
    model, record = train(options, tokenizer=tokenizer, stream=documents(entries, seed=1))
    save_model(model, tokenizer=tokenizer, folder=tmp_path, options=options, record=record)

    assert record.losses[-1] < record.losses[0] - 0.3
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded.config.vocab_size == len(again) == 600
    assert {path.name for path in tmp_path.iterdir()} == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "training.json",
    }


def test_training_twice_from_one_seed_gives_equal_losses(entries: list[Entry]) -> None:
    options = TrainingOptions(
        steps=3,
        tokens_per_step=256,
        row_tokens=128,
        steps_per_long_step=None,
        vocabulary_size=600,
        threads=1,
    )
    tokenizer = train_tokenizer([e.answer for e in entries[:200]], vocabulary_size=600)

    def losses() -> list[float]:
        return train(options, tokenizer=tokenizer, stream=documents(entries, seed=1))[1].losses

    assert losses() == losses()


def test_a_tokenizer_folder_is_written_the_same_twice(tmp_path: Path) -> None:
    written: list[bytes] = []
    for name in ("first", "second"):
        target = tmp_path / name
        target.mkdir()
        texts = [answer for _, answer in SMALL_TALK]
        save_tokenizer(train_tokenizer(texts, vocabulary_size=400), target)
        written.append((target / "tokenizer.json").read_bytes())
    assert written[0] == written[1]
