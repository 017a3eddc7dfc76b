"""What steps are predicted to take, what their SLO leaves, and where they can be given up.

slack     until the next token of the online sequences in a step is due, tightest first
budget    slack / margin: offline work joins while the step is predicted to end within it
hold      how long a step without online work may keep an online arrival waiting
"""

from collections.abc import Iterable
from typing import Final

from libs.engine.scheduling.coserve import CoserveOptions
from libs.engine.scheduling.tracked_sequence import TrackedSequence
from libs.kernel.units import NS_PER_MS, NS_PER_S
from libs.policy.latency_model import LatencyModel, StepWork
from libs.policy.latency_tracker import LatencyTracker
from libs.policy.slo_margin import SloMargin

RATE_SHARE: Final = 0.98
"""Batches that reach this share of the best rate are as good as the best: measurements say no more.
Of these the largest is taken, because what a step costs besides its tokens is easily missed by a
fit, and a long step can be given up."""
GROUP_NS_MIN: Final = 2 * NS_PER_MS
"""Layers between two safepoints take about so long: 100 times what a safepoint costs, so that
none is worth saving, and every further one lets a step end earlier. Less where the SLO is short."""


class StepTiming:
    """Predictions of one engine, which follow its steps. Deterministic."""

    def __init__(
        self, options: CoserveOptions, *, layers: int | None, step_tokens_max: int
    ) -> None:
        self._options = options
        self._layers = layers if options.rules.has_safepoints else None
        self._step_tokens_max = step_tokens_max
        self._tracker = LatencyTracker(options.latency)
        self._margin = SloMargin()
        self._best_tokens: tuple[LatencyModel, int] | None = None

    @property
    def model(self) -> LatencyModel:
        """What predictions are made with now."""
        return self._tracker.model

    @property
    def prefill_tokens_per_s(self) -> int:
        """How fast a whole step of one prompt is computed."""
        tokens = self._step_tokens_max
        work = StepWork().with_prefill(tokens=tokens, tokens_before=0)
        return tokens * NS_PER_S // max(1, self._tracker.model.predict_ns(work))

    @property
    def error(self) -> float:
        """Mean relative error of the recent predictions."""
        return self._tracker.error

    @property
    def is_profile_off(self) -> bool:
        """Whether the profile has drifted from what steps take: it is time to measure again."""
        return self._tracker.is_drifting

    @property
    def margin(self) -> float:
        """By what predictions are multiplied before they are held against an SLO."""
        fixed = self._options.rules.margin_fixed
        return self._margin.factor if fixed is None else fixed

    def predict_ns(self, work: StepWork) -> int:
        """Return what this work takes, without margin."""
        return self._tracker.model.predict_ns(work)

    def budget_ns(self, slack_ns: int) -> int:
        """Return what a step may be predicted to take, to end within the slack after all."""
        return int(max(0, slack_ns) / self.margin)

    def slack_ns(self, sequences: Iterable[tuple[TrackedSequence, int]], *, now_ns: int) -> int:
        """Return how long a step may take that computes so many tokens of these online sequences,
        so that each has its next token in time; below 0 where that is too late already."""
        ttft_slo_ns, tbt_slo_ns = self._options.ttft_slo_ns, self._options.tbt_slo_ns
        slacks = []
        for sequence, tokens in sequences:
            due_ns = sequence.next_token_due_ns(ttft_slo_ns=ttft_slo_ns, tbt_slo_ns=tbt_slo_ns)
            missing = sequence.tokens_missing - tokens
            if missing > 0:
                due_ns -= self.prefill_ns(missing, tokens_before=sequence.tokens_computed + tokens)
            slacks.append(due_ns - now_ns)
        return min(slacks)

    def prefill_ns(self, tokens: int, *, tokens_before: int) -> int:
        """Return what a prompt of so many tokens takes in steps of its own."""
        steps = -(-tokens // self._step_tokens_max)
        work = StepWork(sequences=steps - 1).with_prefill(
            tokens=tokens, tokens_before=tokens_before
        )
        model = self._tracker.model
        return model.predict_ns(work) + round((steps - 1) * model.step_ns)

    @property
    def hold_ns(self) -> int:
        """Return how long offline work may be predicted to keep an online arrival waiting."""
        return self.budget_ns(self._options.offline_hold_ns_max)

    @property
    def offline_step_ns_max(self) -> int:
        """Return what a step without online work may be predicted to take."""
        return self.hold_ns if self._layers is None else self.hold_ns * self._layers

    @property
    def offline_step_tokens(self) -> int:
        """Return the tokens of a step without online work, for the best rate."""
        model = self._tracker.model
        if self._best_tokens is None or self._best_tokens[0] is not model:
            self._best_tokens = (model, best_tokens(model, tokens_max=self._step_tokens_max))
        return self._best_tokens[1]

    def layers_between_safepoints(self, predicted_ns: int) -> int | None:
        """Return the spacing of the safepoints of a step of so long, which stops in time then when
        asked to; None where it has none, since it cannot stop or is over at once."""
        if self._layers is None:
            return None
        fixed = self._options.rules.layers_between_safepoints
        if fixed is not None:
            return min(fixed, self._layers)
        groups = max(predicted_ns // GROUP_NS_MIN, -(-predicted_ns // max(1, self.hold_ns)))
        return None if groups <= 1 else max(1, self._layers // groups)

    def group_ns(self, predicted_ns: int, layers_between_safepoints: int) -> int:
        """Return how long one group of layers of such a step takes."""
        assert self._layers is not None
        return predicted_ns * min(layers_between_safepoints, self._layers) // self._layers

    def observe(
        self, work: StepWork, *, duration_ns: int, predicted_ns: int, slack_ns: int | None
    ) -> None:
        """Take in a step that ran to its end. With `slack_ns`, offline work joined it within that
        slack, so that a miss is the margin's."""
        self._tracker.observe(work, duration_ns)
        is_slo_met = None if slack_ns is None else duration_ns <= slack_ns
        self._margin.observe(
            predicted_ns=predicted_ns, observed_ns=duration_ns, is_slo_met=is_slo_met
        )


def best_tokens(model: LatencyModel, *, tokens_max: int) -> int:
    """Return the most tokens of a step, in doublings, that come close to the best rate of all."""
    sizes = [1 << power for power in range(tokens_max.bit_length())]
    if sizes[-1] != tokens_max:
        sizes.append(tokens_max)

    def rate(tokens: int) -> float:
        work = StepWork().with_prefill(tokens=tokens, tokens_before=0)
        return tokens / max(1, model.predict_ns(work))

    best = max(rate(tokens) for tokens in sizes)
    return max(tokens for tokens in sizes if rate(tokens) >= RATE_SHARE * best)
