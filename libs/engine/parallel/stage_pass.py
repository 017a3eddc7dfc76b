"""One position's part of the forward pass of every plan."""

from collections.abc import Sequence

import torch

from libs.engine.attention import PagedAttention
from libs.engine.decoder import Decoder, DecoderStep, Pass
from libs.engine.forward import decoder_step
from libs.engine.parallel.group import ReplicaGroup
from libs.engine.parallel.micro_batches import MICRO_BATCH_TOKENS_MIN, MicroBatch, micro_batches
from libs.engine.safepoints import Safepoints
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
        self.safepoints = Safepoints(decoder.device)
        """Of the layers of this stage; each stage gives up by its own signal."""
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

    def logits(self, plan: StepPlan) -> torch.Tensor | None:
        """Compute this position's part; logits_RV on the lead, none elsewhere.

        None where the step was given up: by this stage or one before it. A stage may give up what
        the ones before it have finished; the last one, with the lead, hears of all.
        """
        require(self._position.ranks == 1 or self.group is not None, "no group was joined")
        with self.safepoints.of_step(plan):
            hidden = self._hidden_of(self._micro_batches(plan))
            if self.group is not None:
                self.group.finish_sends()
        return None if hidden is None else self._head_logits(hidden)

    def _hidden_of(self, batches: Sequence[MicroBatch]) -> list[torch.Tensor] | None:
        """Pass the micro-batches on; at the last stage return their rows whose logits are wanted.

        The verdict of the stages so far travels with each micro-batch. After one that was given up
        a stage sends nothing more, but takes in what the stage before it still sends.
        """
        hidden: list[torch.Tensor] = []
        for index, entries in enumerate(batches):
            rows = self._enter(entries, index=index)
            is_complete = rows is not None and self._decoder.run_layers(
                rows, attention=self._attention, safepoints=self.safepoints
            )
            if not self._position.is_last_stage:
                self._send_onward(rows, entries, index=index, is_complete=is_complete)
            elif is_complete and rows is not None:
                hidden.append(self._decoder.logit_rows(rows))
            if not is_complete:
                if rows is not None:
                    self._take_in_the_rest(batches, first=index + 1)
                return None
        return hidden

    def _micro_batches(self, plan: StepPlan) -> tuple[MicroBatch, ...]:
        return micro_batches(
            plan.entries,
            batches_max=self._position.stages,
            tokens_min=self._micro_batch_tokens_min,
            block_tokens=self._attention.shape.block_tokens,
        )

    def _enter(self, entries: MicroBatch, *, index: int) -> Pass | None:
        """Begin a micro-batch; None if a stage before this one has given it up."""
        if self._position.is_first_stage:
            return self._decoder.embed(self._step_of(entries))
        hidden_NC = self._receive(entries, index=index)
        if hidden_NC is None:
            self.safepoints.give_up(layer=self._position.layer_start)
            return None
        return self._decoder.enter(self._step_of(entries), hidden_NC)

    def _step_of(self, entries: MicroBatch) -> DecoderStep:
        return decoder_step(entries, self._attention, device=self.device)

    def _take_in_the_rest(self, batches: Sequence[MicroBatch], *, first: int) -> None:
        """Let the stage before this one, which goes on, get rid of what it sends."""
        if self._position.is_first_stage:
            return
        for index in range(first, len(batches)):
            if self._receive(batches[index], index=index) is None:
                return

    def _receive(self, entries: MicroBatch, *, index: int) -> torch.Tensor | None:
        """Return hidden_NC of a micro-batch; None if it was given up, and nothing comes after."""
        assert self.group is not None
        message = self._message(entries)
        self.group.receive(message, index=index)
        hidden_NC, verdict = self._parts(message)
        is_complete = verdict is None or bool(verdict.item())
        return hidden_NC if is_complete else None

    def _send_onward(
        self, rows: Pass | None, entries: MicroBatch, *, index: int, is_complete: bool
    ) -> None:
        assert self.group is not None
        if not self.safepoints.are_any:
            assert rows is not None
            self.group.send_onward(rows.hidden_NC, index=index)
            return
        message = self._message(entries)
        hidden_NC, verdict = self._parts(message)
        assert verdict is not None
        verdict.fill_(is_complete)
        if is_complete and rows is not None:
            hidden_NC.copy_(rows.hidden_NC)
        self.group.send_onward(message, index=index)

    def _message(self, entries: MicroBatch) -> torch.Tensor:
        """Return room for what one stage sends to the next: hidden_NC, and in a step that has
        safepoints one element more, its verdict. All ranks know the plan, hence the size."""
        rows = sum(len(entry.token_ids) for entry in entries)
        elements = rows * self._decoder.config.hidden_size + self.safepoints.are_any
        return torch.empty(elements, dtype=self._decoder.dtype, device=self.device)

    def _parts(self, message: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return hidden_NC and, where there are safepoints, whether it is complete."""
        columns = self._decoder.config.hidden_size
        if not self.safepoints.are_any:
            return message.view(-1, columns), None
        return message[:-1].view(-1, columns), message[-1]

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

    @property
    def safepoints(self) -> Safepoints:
        """Where steps may be given up, and what became of it."""
        return self._forward.safepoints

    def request_yield(self, step_id: int) -> None:
        """Ask this step to end at its next safepoint here. From any thread."""
        self._forward.safepoints.request(step_id)

    def run(self, plan: StepPlan) -> StepResult | None:
        """Compute this position's part of one step; the lead has the result."""
        with torch.inference_mode():
            self._forward.logits(plan)
        return None
