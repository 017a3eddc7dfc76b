"""Loads a model folder's tokenizer and lets text streams use it."""

from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from libs.engine.model_config import ModelLoadError


class TokenizerDetokenizer:
    """The Detokenizer over a transformers tokenizer."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        # The Rust tokenizer beneath a fast one decodes without transformers' own overhead, which
        # a step of many sequences would pay for each of its tokens.
        self._backend = getattr(tokenizer, "backend_tokenizer", None)
        names = [f"<0x{byte:02X}>" for byte in range(256)]
        ids = [tokenizer.convert_tokens_to_ids(name) for name in names]
        self._byte_fallback_ids = frozenset(
            token_id
            for name, token_id in zip(names, ids, strict=True)
            if token_id is not None and tokenizer.convert_ids_to_tokens(token_id) == name
        )

    def decode(self, token_ids: list[int]) -> str:
        """Return the text, special tokens left out, incomplete UTF-8 as U+FFFD."""
        if self._backend is not None:
            text: str = self._backend.decode(token_ids, skip_special_tokens=True)
            return text
        # Cleaning up spaces would change text that is emitted already.
        slow_text = self._tokenizer.decode(
            token_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        assert isinstance(slow_text, str)
        return slow_text

    def is_byte_fallback(self, token_id: int) -> bool:
        """Whether the token stands for one raw byte, as in sentencepiece's byte fallback."""
        return token_id in self._byte_fallback_ids


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Load the folder's tokenizer, without running code from it and without the network.

    Raises: ModelLoadError if there is none that transformers can read.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            folder, trust_remote_code=False, local_files_only=True
        )
    except Exception as error:  # transformers raises nearly everything for a broken folder
        reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        raise ModelLoadError(f"{folder}: no readable tokenizer: {reason}") from error
    assert isinstance(tokenizer, PreTrainedTokenizerBase)
    return tokenizer
