"""Builders that the unit tests of the engine share."""

from collections.abc import Callable

import pytest
import torch

from libs.engine.requests import SamplingOptions, SequenceRequest, StopOptions

RequestBuilder = Callable[..., SequenceRequest]


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def a_request() -> RequestBuilder:
    """Build a request: (name, prompt, max_tokens=..., any field of SequenceRequest)."""

    def build(
        name: str = "s", prompt: tuple[int, ...] = (1, 2, 3), **changes: object
    ) -> SequenceRequest:
        max_tokens = changes.pop("max_tokens", 4)
        fields: dict[str, object] = {
            "sequence_id": name,
            "prompt_token_ids": prompt,
            "sampling": SamplingOptions(),
            "stop": StopOptions(max_tokens=max_tokens),  # type: ignore[arg-type]
        }
        return SequenceRequest(**(fields | changes))  # type: ignore[arg-type]

    return build
