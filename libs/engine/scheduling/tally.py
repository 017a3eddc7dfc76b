"""What co-serving brought and cost, counted since the process started."""

from dataclasses import dataclass, fields


@dataclass(slots=True, kw_only=True)
class CoserveTally:
    """Counters of one worker; they outlive the schedulers of its positions.

    WorkerReport has a field of the same name for each.
    """

    steps_online: int = 0
    """Steps without offline work."""
    steps_mixed: int = 0
    steps_offline: int = 0
    """Steps without online work."""
    steps_yielded: int = 0
    """Given up for an online arrival; in none of the three above."""
    tokens_online: int = 0
    """Computed for the first time, prompt and answer."""
    tokens_offline: int = 0
    """Likewise: the harvest."""
    tokens_yielded: int = 0
    """Thrown away with the steps that yielded."""
    tokens_repeated: int = 0
    """Computed once more, after an eviction."""
    evictions_stored: int = 0
    """Offline sequences that made room, and whose KV can all be copied back."""
    evictions_recomputed: int = 0
    """Offline sequences that made room and have to be computed again."""
    preemptions: int = 0
    """Sequences that lost their blocks to their own kind, for want of any."""
    ttft_met: int = 0
    """Online sequences whose first token came within the SLO, from their arrival here."""
    ttft_missed: int = 0
    tbt_met: int = 0
    """Further tokens of online sequences that came within the SLO."""
    tbt_missed: int = 0
    predicted_ns: int = 0
    """Of all steps that ran to their end, without margin."""
    observed_ns: int = 0
    """Of the same steps, from their plan to their result."""

    def reset(self) -> None:
        """Count from nothing again: what was computed so far was no work."""
        for counter in fields(self):
            setattr(self, counter.name, 0)

    def note_token(self, *, wait_ns: int, slo_ns: int, is_first: bool) -> None:
        """Count a token of an online sequence."""
        is_met = wait_ns <= slo_ns
        if is_first:
            self.ttft_met += is_met
            self.ttft_missed += not is_met
        else:
            self.tbt_met += is_met
            self.tbt_missed += not is_met

    def note_tokens(self, *, is_offline: bool, fresh: int, repeated: int) -> None:
        """Count tokens whose KV was computed."""
        if is_offline:
            self.tokens_offline += fresh
        else:
            self.tokens_online += fresh
        self.tokens_repeated += repeated
