"""The nodes of a simulated fleet, each with one watcher and the workers of its GPUs."""

from collections.abc import Sequence
from typing import Protocol

from libs.contracts.preemption import PreemptionNotice
from libs.contracts.reports import Market, WorkerReport
from libs.sim.world import World
from services.preemption_watcher.commands import TellWorkers
from services.simulator.spot.copying import KvCopies
from services.simulator.spot.event_log import EventLog
from services.simulator.spot.node_watcher import NodeWatcher
from services.simulator.spot.options import BLOCK_TOKENS, SpotRunOptions
from services.simulator.spot.paper_models import FP32
from services.simulator.spot.worker import ALIAS, KV_BLOCKS, Fleet, SimWorker


class NodesOwner(Fleet, Protocol):
    """Hears of what befalls nodes."""

    def notice_heard(self, notice: PreemptionNotice) -> None:
        """Take a notice that a watcher published."""

    def nodes_changed(self, lost: Sequence[SimWorker] = ()) -> None:
        """Take note that nodes came, were told to end, or are gone with these workers."""


class Nodes:
    """Starts, warns and ends nodes; knows who runs."""

    def __init__(
        self, world: World, log: EventLog, owner: NodesOwner, copies: KvCopies, *,
        options: SpotRunOptions,
    ) -> None:  # fmt: skip
        self._world = world
        self._blank = _blank_report(options)
        self._log = log
        self._owner = owner
        self._copies = copies
        self._workers: dict[str, SimWorker] = {}
        self._watchers: dict[str, NodeWatcher] = {}
        self._workers_started = 0

    def workers(self) -> list[SimWorker]:
        """All that run, by id."""
        return [self._workers[worker_id] for worker_id in sorted(self._workers)]

    def find_worker(self, worker_id: str) -> SimWorker | None:
        """The worker of this id, if it runs."""
        return self._workers.get(worker_id)

    def add(self, node_id: str, *, market: Market = Market.SPOT, zone: str | None = None) -> None:
        """A node can be used: its workers and its watcher start."""
        self._log.add(node_id, "comes", market=market.value)
        for index in range(self._owner.hardware.gpus_per_node):
            self._workers_started += 1
            worker = SimWorker(
                self._world, self._owner, self._copies, node_id=node_id,
                blank=self._blank.model_copy(
                    update={
                        "worker_id": f"{node_id}-gpu-{index}",
                        "process_id": self._workers_started,
                        "node_id": node_id,
                        "zone": zone,
                        "market": market,
                    }
                ),
            )  # fmt: skip
            self._workers[worker.name] = worker
        watcher = NodeWatcher(
            self._world, node_id=node_id, on_notice=self._owner.notice_heard, on_told=self._tell
        )
        self._watchers[node_id] = watcher
        watcher.begin()
        self._owner.nodes_changed()

    def warn(self, node_id: str, *, ends_at_ns: int) -> None:
        """The cloud says when the node will end."""
        self._log.add(node_id, "has notice")
        self._watchers[node_id].end_at(ends_at_ns)
        self._owner.nodes_changed()

    def end(self, node_id: str) -> None:
        """The node is gone, and whatever was on it."""
        self._log.add(node_id, "ends")
        self._watchers.pop(node_id).kill()
        lost = [worker for worker in self._workers.values() if worker.node_id == node_id]
        for worker in lost:
            worker.kill()
            del self._workers[worker.name]
        self._owner.nodes_changed(lost)

    def _tell(self, command: TellWorkers) -> None:
        for notice in command.notices:
            for worker in self.workers():
                if worker.node_id == notice.node_id:
                    worker.hear(notice)


def _blank_report(options: SpotRunOptions) -> WorkerReport:
    """Return what is the same in all reports; of those a run makes a million."""
    is_limited = options.model is not None
    return WorkerReport(
        worker_id=ALIAS,
        beat=0,
        alias=ALIAS,
        process_id=0,
        context_tokens_max=options.context_tokens_max,
        vocabulary_size=1,
        block_tokens=BLOCK_TOKENS,
        blocks_total=KV_BLOCKS,
        blocks_free=KV_BLOCKS,
        sessions_running_max=options.batch_max,
        sessions_running=0,
        sessions_waiting=0,
        tokens_waiting=0,
        tokens_generated=0,
        steps=0,
        step_ms_recent=0.0,
        is_planned=True,
        is_serving=False,
        memory_bytes=options.hardware.gpu_bytes if is_limited else 0,
        memory_rule=FP32 if is_limited else None,
    )
