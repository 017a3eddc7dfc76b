"""Files that appear whole or not at all, whoever reads them or dies meanwhile."""

import os
from pathlib import Path


def write_whole_file(path: Path, text: str) -> None:
    """Put the text in place of what the file held, in one step. Raises: OSError."""
    staged = path.with_name(f".{path.name}.{os.getpid()}")
    staged.write_text(text, encoding="utf-8")
    staged.replace(path)
