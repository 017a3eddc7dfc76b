"""Turns options into the requests of a run. Reads trace files; sends nothing."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import cycle, islice, repeat, tee

from libs.kernel.rng import Rng
from libs.kernel.units import NS_PER_S
from loadgen.arrivals import (
    RateSegment,
    arrivals_over,
    even_gaps,
    exponential_gaps,
    gamma_gaps,
    paced,
    steady,
)
from loadgen.lengths import Lengths, drawn_from, fixed
from loadgen.options import RunOptions
from loadgen.prompts import MOONCAKE_BLOCK_TOKENS, TokenPrompts, TokenRange
from loadgen.tokenizer_file import token_counter
from loadgen.traces.detect import read_lengths, read_rates, read_requests
from loadgen.traces.requests import TraceRequest
from loadgen.workload import LoadRequest, Workload, joined, text_prompts, token_id_prompts

TABLE_ROWS_MAX = 1_000_000
"""A table of lengths is drawn from at random, so it is held in memory; later rows are left out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What a run will send."""

    workload: Workload
    """Its tally grows while the requests are made."""
    requests: Iterator[LoadRequest]
    """Made as they are taken."""


def planned(options: RunOptions) -> Load:
    """Return the load of these options.

    Raises: ConfigError for options that contradict one another and for files that cannot be read;
    what is wrong further down in a trace is raised where it is reached.
    """
    rng = Rng(options.seed)
    workload = Workload(
        rng=rng.child("requests"),
        make_prompt=_prompt_maker(options, rng.child("prompts")),
        limits=options.length_limits(),
    )
    return Load(workload=workload, requests=workload.requests(_recorded(options, rng)))


def _recorded(options: RunOptions, rng: Rng) -> Iterable[TraceRequest]:
    arrivals = _arrivals(options, rng.child("arrivals"))
    if options.trace is None:
        instants = repeat(0) if arrivals is None else arrivals
        return joined(instants, _lengths(options, rng.child("lengths")))
    requests = read_requests(options.trace)
    if arrivals is None:
        return _paced(requests, speed=options.speed)
    return (
        replace(request, arrival_ns=at_ns)
        for at_ns, request in zip(arrivals, requests, strict=False)
    )


def _arrivals(options: RunOptions, rng: Rng) -> Iterator[int] | None:
    """Return the arrivals that the options describe; None if a trace or nobody decides them."""
    if options.rate is None and options.rates is None:
        return None
    arrivals = arrivals_over(_gaps(options, rng), _rates(options))
    return paced(arrivals, speed=options.speed)


def _gaps(options: RunOptions, rng: Rng) -> Iterator[float]:
    if options.cv == 0:
        return even_gaps()
    return exponential_gaps(rng) if options.cv == 1 else gamma_gaps(rng, cv=options.cv)


def _rates(options: RunOptions) -> Iterable[RateSegment]:
    if options.rates is not None:
        return read_rates(options.rates)
    assert options.rate is not None
    if options.burst_rate is None:
        return steady(options.rate)
    quiet = RateSegment(duration_ns=round(options.quiet_s * NS_PER_S), rate_per_s=options.rate)
    burst = RateSegment(
        duration_ns=round(options.burst_s * NS_PER_S), rate_per_s=options.burst_rate
    )
    steady(options.rate + options.burst_rate)  # Refuses a rate of 0 throughout.
    return cycle((quiet, burst))


def _lengths(options: RunOptions, rng: Rng) -> Iterator[Lengths]:
    if options.lengths is not None:
        table = list(islice(read_lengths(options.lengths), TABLE_ROWS_MAX))
        return drawn_from(rng, table)
    return fixed(Lengths(prompt_tokens=options.prompt_tokens, output_tokens=options.output_tokens))


def _paced(requests: Iterator[TraceRequest], *, speed: float) -> Iterator[TraceRequest]:
    originals, copies = tee(requests)
    instants = paced((request.arrival_ns for request in copies), speed=speed)
    return (
        replace(request, arrival_ns=at_ns)
        for request, at_ns in zip(originals, instants, strict=True)
    )


def _prompt_maker(
    options: RunOptions, rng: Rng
) -> Callable[[TraceRequest, int], str | tuple[int, ...]]:
    if options.tokenizer is not None:
        return text_prompts(rng, count_tokens=token_counter(options.tokenizer))
    prompts = TokenPrompts(
        rng,
        TokenRange(token_id_min=options.token_id_min, token_id_max=options.token_id_max),
        # Prefixes shrink with the prompts, so that as many of them are shared.
        block_tokens=max(1, MOONCAKE_BLOCK_TOKENS // options.length_divisor),
    )
    return token_id_prompts(prompts)
