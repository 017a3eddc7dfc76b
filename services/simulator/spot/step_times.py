"""How long one step of continuous batching takes on a shape, by the cost model.

Each decoding sequence is one of the batch that the cost model knows. Each prompt token takes its
share of a prompt's prefill: cut into chunks that follow one another through the stages, a prompt of
p parts takes (P + p - 1) / p of the time that its layers take on one stage.
"""

from typing import Final

from libs.policy.cost_model import batch_times
from libs.policy.model_profile import ModelProfile
from libs.policy.shapes import ReplicaShape

PREFILL_CHUNKS: Final = 4
"""Of a typical prompt: 128 of 512 tokens."""


class StepTimes:
    """Of one shape; what was worked out once is remembered."""

    def __init__(
        self,
        profile: ModelProfile,
        shape: ReplicaShape,
        *,
        prefill_chunks: int = PREFILL_CHUNKS,
    ) -> None:
        self._profile = profile
        self._shape = shape
        self._decoding_ns = {0: 0}
        self.prompt_token_ns = self._prompt_token_ns(prefill_chunks)

    def decoding_ns(self, sequences: int) -> int:
        """One token of each of so many sequences."""
        if sequences not in self._decoding_ns:
            times = batch_times(self._profile, self._shape, batch=sequences)
            self._decoding_ns[sequences] = times.step_ns
        return self._decoding_ns[sequences]

    def step_ns(self, *, decodes: int, prompt_tokens: int) -> int:
        """A step of both; nobody decodes while a prompt is computed."""
        return self.decoding_ns(decodes) + prompt_tokens * self.prompt_token_ns

    def _prompt_token_ns(self, chunks: int) -> int:
        whole = batch_times(self._profile, self._shape, batch=1)
        stages = self._shape.stages
        overlap = (stages + chunks - 1) / (stages * chunks)
        prefill_ns = whole.prefill_ns * overlap + whole.embedding_ns
        return round(prefill_ns / self._profile.prompt_tokens)
