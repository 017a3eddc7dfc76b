"""The live watcher's core on every simulated node, told of the node's end by its cloud."""

from collections.abc import Callable
from typing import Final, assert_never

from libs.contracts.preemption import NoticeKind, PreemptionNotice
from libs.kernel.core import SetTimer, TimerFired
from libs.sim.process import SimProcess
from libs.sim.world import World
from services.preemption_watcher import commands as watching
from services.preemption_watcher import events as watcher_events
from services.preemption_watcher.core import WatcherCore
from services.preemption_watcher.options import SourceOptions, WatcherOptions
from services.preemption_watcher.readings import Observation, Reading

CLOUD: Final = "cloud"
"""The source of notices; it answers a poll when it has something new to say."""


class NodeWatcher(SimProcess):
    """The watcher of one node; its cloud tells it of the node's end when that is known."""

    def __init__(
        self, world: World, *, node_id: str, on_notice: Callable[[PreemptionNotice], None],
        on_told: Callable[[watching.TellWorkers], None],
    ) -> None:  # fmt: skip
        super().__init__(world, name=f"watcher of {node_id}")
        source = SourceOptions(name=CLOUD, poll_interval_ns=0)
        self.core = WatcherCore(WatcherOptions(node_id=node_id, sources=(source,)))
        self._node_id = node_id
        self._on_notice = on_notice
        self._on_told = on_told
        self._readings: tuple[Reading, ...] = ()
        self._poll_op_id: str | None = None
        """A poll that the cloud has not answered yet."""

    def begin(self) -> None:
        """Start to ask."""
        self._post(watcher_events.WatcherStarted(cause_id=self.name))

    def end_at(self, deadline_at_ns: int) -> None:
        """The cloud knows now when the node will end."""
        notice_id = f"{CLOUD}-{self._node_id}"
        self._readings = (
            Reading(
                notice_id=notice_id,
                kind=NoticeKind.PREEMPTION,
                deadline_at_unix_ns=deadline_at_ns,
            ),
        )
        op_id, self._poll_op_id = self._poll_op_id, None
        if op_id is not None:
            self._answer(op_id)

    def _answer(self, op_id: str) -> None:
        self._post(
            watcher_events.SourceObserved(
                op_id=op_id,
                source=CLOUD,
                observation=Observation(readings=self._readings),
                now_unix_ns=self.world.now_ns,
                cause_id=op_id,
            )
        )

    def _post(self, event: watcher_events.WatcherEvent) -> None:
        commands = self.core.handle(event, now_ns=self.world.now_ns)
        self.core.check_invariants()
        for command in commands:
            self._perform(command)

    def _perform(self, command: watching.WatcherCommand) -> None:
        match command:
            case watching.PollSource():
                self._poll_op_id = command.op_id
            case watching.PublishNotice():
                if isinstance(command.notice, PreemptionNotice):
                    self._on_notice(command.notice)
            case watching.TellWorkers():
                self._on_told(command)
            case SetTimer():
                fired = TimerFired(key=command.key, cause_id=command.cause_id)
                self.set_timer(
                    command.key, after_ns=command.after_ns, action=lambda: self._post(fired)
                )
            case watching.LogOutcome() | watching.StopProcess():
                pass
            case watching.ConfirmToSource() | watching.AnswerRequest():
                pass  # nobody asks for anything
            case _:
                assert_never(command)
