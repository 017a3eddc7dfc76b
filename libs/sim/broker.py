"""A broker behind a network that delays, loses and doubles, and that can go away for a while.

The broker itself is the in-memory one that the tests of the live bus hold to NATS's behaviour.
Core messages may be lost or doubled on either leg. A call (append, claim, read) may lose its way
there or its way back: the caller then sees a time-out and cannot know which.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from libs.kernel.units import NS_PER_MS, NS_PER_US
from libs.runtime.bus import BusMessage
from libs.runtime.memory_broker import MemoryBroker
from libs.sim.process import Life, SimProcess
from libs.sim.world import Action, World

ResultT = TypeVar("ResultT")
OnMessage = Callable[[BusMessage], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkOptions:
    """How bad the network is. Probabilities are per leg."""

    is_ordered: bool = True
    """Whether a link delivers in the order of sending, as one TCP connection does. Unordered is
    harsher than anything real, and holds the cores to not depending on order."""
    delay_ns_min: int = 50 * NS_PER_US
    delay_ns_max: int = 2 * NS_PER_MS
    spike_probability: float = 0.0
    spike_ns_max: int = 300 * NS_PER_MS
    loss_probability: float = 0.0
    double_probability: float = 0.0
    call_loss_probability: float = 0.0
    call_timeout_ns: int = 1_000 * NS_PER_MS


@dataclass(frozen=True, slots=True, kw_only=True)
class _Subscriber:
    process: SimProcess
    on_message: OnMessage


class SimBroker:
    """What every simulated process talks to."""

    def __init__(self, world: World, broker: MemoryBroker, options: NetworkOptions) -> None:
        self.world = world
        self.broker = broker
        self.options = options
        self.is_down = False
        self.messages_lost = 0
        self.messages_doubled = 0
        self._rng = world.rng.child("network")
        self._subscribers: dict[int, _Subscriber] = {}
        self._link_free_at_ns: dict[str, int] = {}

    def heal(self) -> None:
        """From now on nothing is lost, doubled or late beyond the plain delay."""
        self.is_down = False
        self.options = NetworkOptions(
            is_ordered=self.options.is_ordered,
            delay_ns_min=self.options.delay_ns_min,
            delay_ns_max=self.options.delay_ns_max,
        )

    def subscribe(
        self,
        process: SimProcess,
        pattern: str,
        on_message: OnMessage,
        *,
        queue_group: str | None = None,
    ) -> None:
        """Listen; the broker knows at once."""
        subscription_id = self.broker.subscribe(pattern, queue_group=queue_group)
        self._subscribers[subscription_id] = _Subscriber(process=process, on_message=on_message)

    def disconnect(self, process: SimProcess) -> None:
        """The broker notices that the process's connection is closed."""
        for subscription_id in sorted(self._subscribers):
            if self._subscribers[subscription_id].process is process:
                self.broker.unsubscribe(subscription_id)
                del self._subscribers[subscription_id]

    def publish(self, process: SimProcess, message: BusMessage) -> None:
        """Send a core message on its way; it may be lost or doubled before the broker sees it."""
        for _ in range(self._copies()):
            self._travel(f"from {process.name}", lambda: self._arrive(message))

    def call(
        self,
        process: SimProcess,
        operation: Callable[[MemoryBroker, int], ResultT],
        *,
        on_result: Callable[[ResultT], None],
        on_timeout: Callable[[], None],
    ) -> None:
        """Run an operation at the broker; exactly one of the two callbacks follows.

        The operation may have run although the caller sees a time-out.
        """
        is_settled = False

        def settle(callback: Callable[[], None]) -> None:
            nonlocal is_settled
            if not is_settled:
                is_settled = True
                callback()

        def arrive() -> None:
            if self.is_down:
                return
            result = operation(self.broker, self.world.now_ns)
            self._carry()
            if not self._is_call_lost():
                answer = partial(process.deliver, lambda: settle(lambda: on_result(result)))
                self._travel(f"to {process.name}", answer)

        if not self._is_call_lost():
            self._travel(f"from {process.name}", arrive)
        self.world.after(
            self.options.call_timeout_ns, lambda: process.deliver(lambda: settle(on_timeout))
        )

    def _arrive(self, message: BusMessage) -> None:
        if self.is_down:
            return
        reached = self.broker.publish(message, now_ns=self.world.now_ns)
        if reached == 0 and message.reply_to is not None:
            no_responders = BusMessage(
                subject=message.reply_to, payload=b"", headers={"Status": "503"}
            )
            self.broker.publish(no_responders, now_ns=self.world.now_ns)
        self._carry()

    def _carry(self) -> None:
        """Send what the broker has for its subscribers."""
        for delivery in self.broker.take_deliveries():
            subscriber = self._subscribers.get(delivery.subscription_id)
            if subscriber is None or subscriber.process.life is Life.DEAD:
                continue
            for _ in range(self._copies()):
                self._send(subscriber, delivery.message)

    def _send(self, subscriber: _Subscriber, message: BusMessage) -> None:
        process = subscriber.process
        hand_over = partial(process.deliver, lambda: subscriber.on_message(message))
        self._travel(f"to {process.name}", hand_over)

    def _travel(self, link: str, action: Action) -> None:
        """Run the action at the far end of the link, behind what was sent there before."""
        arrives_at_ns = self.world.now_ns + self._delay_ns()
        if self.options.is_ordered:
            arrives_at_ns = max(arrives_at_ns, self._link_free_at_ns.get(link, 0))
            self._link_free_at_ns[link] = arrives_at_ns
        self.world.after(arrives_at_ns - self.world.now_ns, action)

    def _copies(self) -> int:
        draw = self._rng.random()
        if draw < self.options.loss_probability:
            self.messages_lost += 1
            return 0
        if draw > 1.0 - self.options.double_probability:
            self.messages_doubled += 1
            return 2
        return 1

    def _is_call_lost(self) -> bool:
        return self._rng.random() < self.options.call_loss_probability

    def _delay_ns(self) -> int:
        options = self.options
        if options.spike_probability and self._rng.random() < options.spike_probability:
            return self._rng.randint(options.delay_ns_max, options.spike_ns_max)
        return self._rng.randint(options.delay_ns_min, options.delay_ns_max)
