"""Counts tokens of text with a tokenizer.json."""

from collections.abc import Callable
from pathlib import Path

from libs.kernel.errors import ConfigError


def token_counter(path: Path) -> Callable[[str], int]:
    """Return how many tokens a text has, without special ones; `path` may be a model folder.

    Raises: ConfigError if there is no tokenizer, or the library for it is not installed.
    """
    file = path / "tokenizer.json" if path.is_dir() else path
    if not file.is_file():
        raise ConfigError(f"--tokenizer: there is no {file}")
    try:
        # Imported here: a load of token ids needs no tokenizer.
        from tokenizers import Tokenizer
    except ImportError as error:
        raise ConfigError("--tokenizer: the package tokenizers is not installed") from error
    try:
        tokenizer = Tokenizer.from_file(str(file))
    # The library raises bare Exception for a file that it cannot read.
    except Exception as error:
        raise ConfigError(f"--tokenizer: {file} is no tokenizer ({error})") from error

    def count(text: str) -> int:
        return len(tokenizer.encode(text, add_special_tokens=False).ids)

    return count
