"""One position's part of the forward pass of every plan."""

import torch

from libs.engine.attention import PagedAttention
from libs.engine.decoder import Decoder, DecoderStep, Pass
from libs.engine.forward import decoder_step
from libs.engine.parallel.group import ReplicaGroup
from libs.engine.parallel.micro_batches import MICRO_BATCH_TOKENS_MIN, MicroBatch, micro_batches
from libs.engine.steps import StepPlan, StepResult
from libs.kernel.core import require


class StagePass:
    """Runs plans together with the other positions of its replica.

    Every position runs the same plans in the same order. Raises ReplicaBroken when a peer is lost
    in the middle of one; the KV of that plan's tokens is then to be computed again.
    """

    def __init__(
        self,
        decoder: Decoder,
        attention: PagedAttention,
        *,
        micro_batch_tokens_min: int = MICRO_BATCH_TOKENS_MIN,
    ) -> None:
        self._decoder = decoder
        self._attention = attention
        self._position = decoder.position
        self._micro_batch_tokens_min = micro_batch_tokens_min
        self.group: ReplicaGroup | None = None
        """The peers of the passes to come; see `join`."""

    @property
    def device(self) -> torch.device:
        """Where the logits are."""
        return self._decoder.device

    def join(self, group: ReplicaGroup) -> None:
        """Run from now on with these peers; before the first plan, and again after a loss."""
        require(group.position == self._position, "this group is another position's")
        self.group = group
        self._decoder.shard_sum = group if self._position.shards > 1 else None

    def logits(self, plan: StepPlan) -> torch.Tensor:
        """Compute this position's part; logits_RV on the lead, none elsewhere."""
        require(self._position.ranks == 1 or self.group is not None, "no group was joined")
        hidden: list[torch.Tensor] = []
        for index, entries in enumerate(self._micro_batches(plan)):
            step = decoder_step(entries, self._attention, device=self.device)
            rows = self._enter(step, index=index)
            self._decoder.run_layers(rows, self._position.layers, attention=self._attention)
            if self._position.is_last_stage:
                hidden.append(self._decoder.logit_rows(rows))
            elif self.group is not None:
                self.group.send_onward(rows.hidden_NC, index=index)
        if self.group is not None:
            self.group.finish_sends()
        return self._head_logits(hidden)

    def _micro_batches(self, plan: StepPlan) -> tuple[MicroBatch, ...]:
        return micro_batches(
            plan.entries,
            batches_max=self._position.stages,
            tokens_min=self._micro_batch_tokens_min,
            block_tokens=self._attention.shape.block_tokens,
        )

    def _enter(self, step: DecoderStep, *, index: int) -> Pass:
        if self._position.is_first_stage:
            return self._decoder.embed(step)
        assert self.group is not None
        hidden_NC = torch.empty(
            (len(step.token_ids_N), self._decoder.config.hidden_size),
            dtype=self._decoder.dtype,
            device=self.device,
        )
        self.group.receive(hidden_NC, index=index)
        return self._decoder.enter(step, hidden_NC)

    def _head_logits(self, hidden: list[torch.Tensor]) -> torch.Tensor:
        none_RV = torch.empty((0, self._decoder.config.vocabulary_size), device=self.device)
        if not self._position.is_last_stage:
            return none_RV
        hidden_RC = hidden[0] if len(hidden) == 1 else torch.cat(hidden)
        if hidden_RC.shape[0] == 0:
            return none_RV
        logits_RV = self._decoder.logits(hidden_RC)
        return none_RV if logits_RV is None else logits_RV


class MemberRunner:
    """Carries out plans at a position that does not sample."""

    def __init__(self, forward: StagePass) -> None:
        self._forward = forward

    def run(self, plan: StepPlan) -> StepResult | None:
        """Compute this position's part of one step; the lead has the result."""
        with torch.inference_mode():
            self._forward.logits(plan)
        return None
