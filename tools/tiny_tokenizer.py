"""The tiny model's tokenizer: byte-level BPE, its special tokens and its chat template.

Byte-level: every text round-trips, whatever its alphabet, and a rare character is split over
several tokens, which is what streaming detokenisation must cope with. Digits stand alone.
"""

import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from tools.tiny_corpus import Chat, Document

END_OF_TEXT = "<|endoftext|>"
END_OF_TURN = "<|end|>"
PAD = "<|pad|>"
ROLES = ("system", "user", "assistant")
SPECIAL_TOKENS = (END_OF_TEXT, END_OF_TURN, PAD, *(f"<|{role}|>" for role in ROLES))
"""In this order their ids are 0 to 5, whatever the corpus."""

POSITIONS_MAX = 2048

CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- if message['role'] not in ['system', 'user', 'assistant'] -%}"
    "{{- raise_exception('unknown role: ' + message['role']) -}}"
    "{%- endif -%}"
    "{{- '<|' + message['role'] + '|>\\n' + message['content'] + '<|end|>\\n' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|assistant|>\\n' -}}{%- endif -%}"
)


def render(document: Document) -> str:
    """Write a document as the model sees it; a chat exactly as CHAT_TEMPLATE renders it."""
    if not isinstance(document, Chat):
        return document + END_OF_TEXT
    messages = [] if document.system is None else [("system", document.system)]
    for turn in document.turns:
        messages += [("user", turn.question), ("assistant", turn.answer)]
    return "".join(f"<|{role}|>\n{text}{END_OF_TURN}\n" for role, text in messages) + END_OF_TEXT


def train_tokenizer(texts: Iterable[str], *, vocabulary_size: int) -> Tokenizer:
    """Learn the merges; special tokens are split off first and never merged."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\p{N}"), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Write tokenizer.json, tokenizer_config.json and chat_template.jinja for AutoTokenizer."""
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    settings = {
        "add_bos_token": False,
        "bos_token": END_OF_TEXT,
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "eos_token": END_OF_TURN,
        "model_max_length": POSITIONS_MAX,
        "pad_token": PAD,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    text = json.dumps(settings, indent=2, ensure_ascii=False) + "\n"
    (folder / "tokenizer_config.json").write_text(text, encoding="utf-8")
