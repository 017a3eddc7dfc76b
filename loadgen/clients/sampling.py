"""What every request of a run asks for beside its prompt and length."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How answers are drawn."""

    temperature: float = 0.0
    is_length_exact: bool = True
    """Whether the model's end token is ignored, so that every answer has the length asked for."""
