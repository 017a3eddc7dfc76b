"""Laws of the in-memory broker that hold after any history."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from libs.runtime.bus import ConsumerOptions, StreamFull, StreamOptions, WrongLastSequence
from libs.runtime.memory_broker import MemoryBroker
from libs.runtime.memory_consumer import MemoryLease

ACK_WAIT_NS = 100
DELIVERIES_MAX = 3
LEASES_MAX = 4
MESSAGES_MAX = 12


class WorkQueue(RuleBasedStateMachine):
    """Every job is unseen, held by one holder, waiting, exhausted or done - and never lost."""

    def __init__(self) -> None:
        super().__init__()
        self.now_ns = 0
        self.broker = MemoryBroker()
        self.broker.ensure_stream(
            StreamOptions(
                name="jobs",
                subjects=("jobs.*",),
                messages_max=MESSAGES_MAX,
                bytes_max=100_000,
                age_max_ns=None,
                retention="work_queue",
                duplicate_window_ns=10**9,
            ),
            now_ns=0,
        )
        self.broker.ensure_consumer(
            ConsumerOptions(
                stream="jobs",
                durable="w",
                filter_subject="jobs.*",
                ack_wait_ns=ACK_WAIT_NS,
                deliveries_max=DELIVERIES_MAX,
                leases_max=LEASES_MAX,
            ),
            now_ns=0,
        )
        self.stored: set[int] = set()
        self.done: set[int] = set()
        self.held_until: dict[int, int] = {}
        self.leases: list[MemoryLease] = []
        self.deliveries: dict[int, int] = {}

    @rule(subject=st.sampled_from("ab"), message_id=st.integers(0, 30))
    def append(self, subject: str, message_id: int) -> None:
        before = self.broker.stream_state("jobs", now_ns=self.now_ns)
        try:
            appended = self.broker.append(
                f"jobs.{subject}", b"", message_id=str(message_id), now_ns=self.now_ns
            )
        except StreamFull:
            assert before.messages == MESSAGES_MAX
            return
        assert appended.is_duplicate == (appended.sequence <= before.last_sequence)
        self.stored.add(appended.sequence)

    @rule(expected=st.integers(0, 20))
    def append_fenced(self, expected: int) -> None:
        last = self.broker.last_message("jobs", "jobs.a", now_ns=self.now_ns)
        actual = 0 if last is None else last.sequence
        told: int | None = actual
        try:
            appended = self.broker.append(
                "jobs.a", b"", expected_last_subject_sequence=expected, now_ns=self.now_ns
            )
            self.stored.add(appended.sequence)
            is_conflict = False
        except WrongLastSequence as refusal:
            told = refusal.actual_sequence
            is_conflict = True
        except StreamFull:
            is_conflict = False
        assert is_conflict == (actual != expected)
        assert told == actual

    @rule(count=st.integers(1, 6))
    def fetch(self, count: int) -> None:
        for lease in self.broker.fetch("jobs", "w", count, now_ns=self.now_ns):
            sequence = lease.message.sequence
            assert self.held_until.get(sequence, 0) <= self.now_ns, "two holders at once"
            assert sequence not in self.done
            self.deliveries[sequence] = self.deliveries.get(sequence, 0) + 1
            assert lease.delivery_count == self.deliveries[sequence] <= DELIVERIES_MAX
            self.held_until[sequence] = self.now_ns + ACK_WAIT_NS
            self.leases.append(lease)

    @precondition(lambda self: self.leases)
    @rule(data=st.data(), verb=st.sampled_from(["ack", "nak", "in_progress", "term"]))
    def report(self, data: st.DataObject, verb: str) -> None:
        lease = data.draw(st.sampled_from(self.leases))
        sequence = lease.message.sequence
        is_holder = lease.delivery_count == self.deliveries[sequence] and sequence not in self.done
        if verb in ("ack", "term"):
            self.broker.ack(lease)
            self.done.add(sequence)
        elif not is_holder or self.held_until[sequence] <= self.now_ns:
            return
        elif verb == "nak":
            delay_ns = data.draw(st.integers(0, 200))
            self.broker.nak(lease, delay_ns=delay_ns, now_ns=self.now_ns)
            self.held_until[sequence] = self.now_ns + delay_ns
        else:
            self.broker.in_progress(lease, now_ns=self.now_ns)
            self.held_until[sequence] = self.now_ns + ACK_WAIT_NS

    @rule(duration_ns=st.integers(1, 150))
    def wait(self, duration_ns: int) -> None:
        self.now_ns += duration_ns

    @invariant()
    def nothing_is_lost_and_no_bound_is_broken(self) -> None:
        self.broker.check()
        messages = self.broker.read_subject("jobs", "jobs.*", now_ns=self.now_ns)
        assert {m.sequence for m in messages} == self.stored - self.done

    def teardown(self) -> None:
        """Left alone, every job is delivered until it is done or exhausted."""
        for _ in range(DELIVERIES_MAX * (MESSAGES_MAX + 1)):
            self.now_ns += 1000
            self.fetch(MESSAGES_MAX)
        for sequence in self.stored - self.done:
            assert self.deliveries[sequence] == DELIVERIES_MAX


WorkQueue.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
test_a_work_queue_keeps_its_laws = WorkQueue.TestCase
