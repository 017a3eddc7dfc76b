"""Whether KV that left the device comes back by a copy or by being computed again; pure.

A copy takes a while however little it brings, and then so long per byte. Computing takes so long
per token, and per token before it. So there is a crossover: below it a copy that exists is left
alone, and above it even one that has to be made first may pay.

    copy back          load            < compute
    flush, copy back   store + load    < compute
"""

from dataclasses import dataclass
from typing import Protocol

from libs.kernel.units import NS_PER_S
from libs.policy.latency_model import LatencyModel, StepWork

RATE_WEIGHT = 0.2
"""Share of the newest copy in the measured rate: about the last ten count."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HostLink:
    """How fast KV goes between device and host, either way."""

    copy_ns: int
    """Each copy, whatever it brings: hand-over to its thread, launch, notice of its end."""
    bytes_per_s: int

    def duration_ns(self, bytes_: int) -> int:
        """Return the time of one copy."""
        return self.copy_ns + round(bytes_ * NS_PER_S / self.bytes_per_s)

    def after(self, *, bytes_: int, duration_ns: int) -> "HostLink":
        """Return what is believed of the link after a copy was measured."""
        streaming_ns = max(1, duration_ns - self.copy_ns)
        measured = bytes_ * NS_PER_S / streaming_ns
        rate = self.bytes_per_s + RATE_WEIGHT * (measured - self.bytes_per_s)
        return HostLink(copy_ns=self.copy_ns, bytes_per_s=max(1, round(rate)))


def compute_ns(model: LatencyModel, *, tokens: int, tokens_before: int) -> int:
    """Return what computing so many tokens behind others adds to a step that runs anyway."""
    nothing = StepWork()
    work = nothing.with_prefill(tokens=tokens, tokens_before=tokens_before)
    return model.predict_ns(work) - model.predict_ns(nothing)


class ReturnTest(Protocol):
    """Decides between copying and computing."""

    def __call__(
        self, link: HostLink, model: LatencyModel, *, bytes_: int, tokens: int, tokens_before: int
    ) -> bool: ...


def loading_pays(
    link: HostLink, model: LatencyModel, *, bytes_: int, tokens: int, tokens_before: int
) -> bool:
    """Whether to copy back what lies in host memory, rather than to compute it again."""
    computing_ns = compute_ns(model, tokens=tokens, tokens_before=tokens_before)
    return link.duration_ns(bytes_) < computing_ns


def flushing_pays(
    link: HostLink, model: LatencyModel, *, bytes_: int, tokens: int, tokens_before: int
) -> bool:
    """Whether to copy out what was evicted uncopied, so as to copy it back later."""
    computing_ns = compute_ns(model, tokens=tokens, tokens_before=tokens_before)
    return 2 * link.duration_ns(bytes_) < computing_ns
