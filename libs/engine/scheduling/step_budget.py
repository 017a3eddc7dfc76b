"""What one step may still take: tokens, and predicted time where an SLO bounds it."""

from collections.abc import Callable, Iterable

from libs.policy.latency_model import StepWork


class StepBudget:
    """Grows entry by entry; a time bound holds for what is asked for after it was set."""

    def __init__(self, *, tokens: int, predict_ns: Callable[[StepWork], int]) -> None:
        self._predict_ns = predict_ns
        self._tokens_max = tokens
        self._tokens_floor = 0
        self._time_ns_max: int | None = None
        self._rows = 0
        self._pairs_prefilled = 0.0
        self._tokens_attended = 0
        self._sequences = 0

    @property
    def work(self) -> StepWork:
        """All that the step computes so far."""
        return StepWork(
            rows=self._rows,
            pairs_prefilled=self._pairs_prefilled,
            tokens_attended=self._tokens_attended,
            sequences=self._sequences,
        )

    @property
    def tokens_left(self) -> int:
        """Tokens that the step may still take, if its time allows."""
        return max(0, self._tokens_max - self._rows)

    def bound(
        self, *, time_ns_max: int | None, tokens_max: int | None = None, tokens_floor: int = 0
    ) -> None:
        """Let the step take so long at most, and so many tokens; but `tokens_floor` always, so
        that predictions which are far too high do not stop everything."""
        self._time_ns_max = time_ns_max
        self._tokens_floor = tokens_floor
        if tokens_max is not None:
            self._tokens_max = min(self._tokens_max, tokens_max)

    def fits_decodes(self, tokens_before: Iterable[int]) -> bool:
        """Whether one token of each of these sequences fits, all together."""
        before = list(tokens_before)
        if len(before) > self.tokens_left:
            return False
        return self._time_ns_max is None or self._is_in_time(
            StepWork(
                rows=self._rows + len(before),
                pairs_prefilled=self._pairs_prefilled,
                tokens_attended=self._tokens_attended + sum(before),
                sequences=self._sequences + len(before),
            )
        )

    def take_decode(self, *, tokens_before: int) -> None:
        """Add one token of a sequence that is past its prompt."""
        self._rows += 1
        self._tokens_attended += tokens_before
        self._sequences += 1

    def prefill_tokens(self, tokens: int, *, tokens_before: int) -> int:
        """Return how many of these tokens of a prompt fit; more of them never take less time."""
        most = min(tokens, self.tokens_left)
        if self._time_ns_max is None or most <= 0:
            return max(0, most)
        work = self.work

        def is_fitting(count: int) -> bool:
            return self._is_in_time(work.with_prefill(tokens=count, tokens_before=tokens_before))

        if is_fitting(most):
            return most
        fitting, too_many = 0, most
        while too_many - fitting > 1:
            middle = (fitting + too_many) // 2
            if is_fitting(middle):
                fitting = middle
            else:
                too_many = middle
        return max(fitting, min(most, self._tokens_floor - self._rows))

    def take_prefill(self, tokens: int, *, tokens_before: int) -> None:
        """Add a chunk of a prompt."""
        self._rows += tokens
        self._pairs_prefilled += tokens * (tokens_before + tokens / 2)
        self._sequences += 1

    def _is_in_time(self, work: StepWork) -> bool:
        assert self._time_ns_max is not None
        return work.rows <= self._tokens_floor or self._predict_ns(work) <= self._time_ns_max
