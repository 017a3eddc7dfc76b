"""One simulated run from options to verdict."""

from dataclasses import asdict, dataclass
from functools import partial

from libs.client.reader_events import Left
from libs.contracts.batches import OFFLINE_PRIORITY
from libs.contracts.online import RequestFinished, SamplingParameters, SubmitRequest
from libs.engine.requests import SamplingOptions, SequenceRequest, StopOptions
from libs.engine.simulated_runner import simulated_tokens
from libs.kernel.rng import Rng
from libs.kernel.units import NS_PER_S, seconds
from libs.sim.world import World
from services.online_router.state import derived_seed
from services.simulator.client_process import ClientProcess
from services.simulator.fleet import ALIAS, EOS_TOKEN_IDS, VOCABULARY_SIZE, SimFleet
from services.simulator.scenario import ScenarioOptions

TENANTS = ("", "shore", "harbour")
LEAK_CHECK_NS = 150 * NS_PER_S
"""After the last answer: time for the fleet to let go of everything it held."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What a run showed. `is_ok` is what every promise together comes to."""

    seed: int
    digest: str
    requests: int
    finished: int
    cancelled: int
    lost: tuple[str, ...]
    """Requests without an end, or with one that nobody caused."""
    answered_twice: tuple[str, ...]
    tokens_wrong: tuple[str, ...]
    """Requests whose tokens differ from an undisturbed run, or from themselves."""
    sessions_leaked: int
    kills: int
    pauses: int
    outages: int
    resubmissions: int
    virtual_s: float
    actions: int

    @property
    def is_ok(self) -> bool:
        """Whether nothing was lost, doubled, changed or leaked."""
        return not (self.lost or self.answered_twice or self.tokens_wrong or self.sessions_leaked)

    def line(self) -> str:
        """Return the run in one line for people."""
        state = "ok" if self.is_ok else "FAILED"
        failures = {
            "lost": self.lost,
            "answered twice": self.answered_twice,
            "tokens wrong": self.tokens_wrong,
        }
        details = [f"{name}: {', '.join(ids)}" for name, ids in failures.items() if ids]
        if self.sessions_leaked:
            details.append(f"sessions leaked: {self.sessions_leaked}")
        return (
            f"seed {self.seed}: {state}  {self.finished} finished, {self.cancelled} cancelled of "
            f"{self.requests}; {self.kills} kills, {self.pauses} pauses, {self.outages} outages, "
            f"{self.resubmissions} resubmissions in {self.virtual_s:.1f} virtual s  "
            f"{self.digest}  {'; '.join(details)}".rstrip()
        )

    def as_json(self) -> dict[str, object]:
        """Return the fields for machines."""
        return {"ok": self.is_ok, **asdict(self)}


def simulate(options: ScenarioOptions) -> Verdict:
    """Run a scenario to its end: arrivals under faults, then healing, then the verdict."""
    world = World(seed=options.seed, actions_max=options.actions_max)
    fleet = SimFleet(world, options)
    clients: list[ClientProcess] = []
    _schedule_arrivals(world, fleet, clients, options)
    arrivals_end_ns = options.arrival_window_ns + NS_PER_S
    world.run(until_ns=arrivals_end_ns, is_done=lambda: False)
    fleet.heal()
    world.run(
        until_ns=world.now_ns + options.settle_ns_max,
        is_done=lambda: all(client.is_done for client in clients),
    )
    answered_at_ns = world.now_ns
    world.run(until_ns=world.now_ns + LEAK_CHECK_NS, is_done=lambda: fleet.sessions_held() == 0)
    return _verdict(world, fleet, clients, options, answered_at_ns=answered_at_ns)


def _schedule_arrivals(
    world: World, fleet: SimFleet, clients: list[ClientProcess], options: ScenarioOptions
) -> None:
    rng = world.rng.child("load")
    shared_prefix = tuple(rng.randrange(VOCABULARY_SIZE) for _ in range(64))
    for number in range(options.requests):
        submission = _submission(rng, number, options, shared_prefix=shared_prefix)
        leaves_after = None
        if rng.random() < options.cancel_probability:
            leaves_after = rng.randint(1, options.output_tokens_max)

        arrive = partial(_arrive, fleet, clients, submission, leaves_after)
        world.after(rng.randrange(options.arrival_window_ns), arrive)


def _arrive(
    fleet: SimFleet,
    clients: list[ClientProcess],
    submission: SubmitRequest,
    leaves_after: int | None,
) -> None:
    client = ClientProcess(fleet.network, submission, alias=ALIAS, leaves_after=leaves_after)
    clients.append(client)


def _submission(
    rng: Rng, number: int, options: ScenarioOptions, *, shared_prefix: tuple[int, ...]
) -> SubmitRequest:
    length = rng.randint(1, options.prompt_tokens_max)
    prompt = tuple(rng.randrange(VOCABULARY_SIZE) for _ in range(length))
    if rng.random() < 0.3:
        prompt = (shared_prefix + prompt)[: options.prompt_tokens_max]
    return SubmitRequest(
        request_id=f"request-{number:05d}",
        prompt_token_ids=prompt,
        max_tokens=rng.randint(1, options.output_tokens_max),
        sampling=SamplingParameters(temperature=rng.choice((0.0, 1.0))),
        ignore_eos=rng.random() < 0.5,
        priority=OFFLINE_PRIORITY if rng.random() < options.offline_probability else 0,
        tenant=rng.choice(TENANTS),
    )


def undisturbed_tokens(submission: SubmitRequest, *, context_tokens_max: int) -> list[int]:
    """Return what the request's answer is when nothing goes wrong."""
    assert submission.prompt_token_ids is not None
    assert submission.max_tokens is not None
    request = SequenceRequest(
        sequence_id=submission.request_id,
        prompt_token_ids=submission.prompt_token_ids,
        sampling=SamplingOptions(
            temperature=submission.sampling.temperature, seed=derived_seed(submission.request_id)
        ),
        stop=StopOptions(max_tokens=submission.max_tokens, ignore_eos=submission.ignore_eos),
    )
    return list(
        simulated_tokens(
            request,
            vocabulary_size=VOCABULARY_SIZE,
            eos_token_ids=EOS_TOKEN_IDS,
            context_tokens_max=context_tokens_max,
        )
    )


def _verdict(
    world: World,
    fleet: SimFleet,
    clients: list[ClientProcess],
    options: ScenarioOptions,
    *,
    answered_at_ns: int,
) -> Verdict:
    context_tokens_max = fleet.engine_options.context_tokens_max
    for client in clients:
        world.note(f"{client.name} {client.witness.outcome!r} {client.witness.token_ids}")
    finished = [c for c in clients if isinstance(c.witness.outcome, RequestFinished)]
    left = [c for c in clients if isinstance(c.witness.outcome, Left)]
    lost = [c.name for c in clients if c not in finished and c not in left]
    wrong = []
    for client in clients:
        expected = undisturbed_tokens(client.submission, context_tokens_max=context_tokens_max)
        seen = client.witness.token_ids
        is_prefix = seen == expected[: len(seen)]
        is_whole = client not in finished or len(seen) == len(expected)
        if client.witness.tokens_contradicted or not is_prefix or not is_whole:
            wrong.append(client.name)
    return Verdict(
        seed=options.seed,
        digest=world.digest,
        requests=options.requests,
        finished=len(finished),
        cancelled=len(left),
        lost=tuple(sorted(lost)) + tuple("unborn" for _ in range(options.requests - len(clients))),
        answered_twice=tuple(
            c.name for c in clients if c.witness.ends > 1 or len(c.witness.endings_received) > 1
        ),
        tokens_wrong=tuple(wrong),
        sessions_leaked=fleet.sessions_held(),
        kills=fleet.kills,
        pauses=fleet.pauses,
        outages=fleet.outages,
        resubmissions=sum(c.submissions - 1 for c in clients),
        virtual_s=seconds(answered_at_ns),
        actions=world.actions_run,
    )
