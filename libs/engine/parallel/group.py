"""The process group of one replica: sums over shards, hidden states from stage to stage.

Each replica forms groups of its own, never torch's default group, under a name that holds its
epoch; so a new one forms beside a running one, and again in the same processes after a loss. All
calls block, with a time-out. A killed peer fails every survivor within about 60 ms, by connections
that close one after another; a frozen one when the time-out ends. A group that failed once is done:
its survivors form another.

Gloo serves CPUs. On CUDA the same calls go to NCCL: experimental, not run yet on several GPUs.
"""

import socket
from collections.abc import Callable
from datetime import timedelta
from itertools import pairwise
from typing import Final, Protocol, TypeVar

import torch
import torch.distributed
from torch._C._distributed_c10d import PrefixStore, ProcessGroupGloo, Store, TCPStore

from libs.engine.parallel.position import Position
from libs.kernel.errors import ConfigError, Unavailable
from libs.kernel.units import NS_PER_S

LOOPBACK: Final = "127.0.0.1"
CPU: Final = torch.device("cpu")
TIMEOUT_NS: Final = 10 * NS_PER_S
"""Above the longest that one stage computes while another waits for it."""
BACKLOG: Final = 128
Result = TypeVar("Result")


class Work(Protocol):
    """What was begun and can be waited for."""

    def wait(self) -> bool: ...


class Backend(Protocol):
    """The calls that gloo and NCCL have in common, of those that are used here."""

    def allreduce(self, tensors: list[torch.Tensor]) -> Work: ...
    def gather(self, output: list[torch.Tensor], part: torch.Tensor, root: int) -> Work: ...
    def send(self, tensors: list[torch.Tensor], rank: int, tag: int) -> Work: ...
    def recv(self, tensors: list[torch.Tensor], rank: int, tag: int) -> Work: ...
    def abort(self) -> None: ...


class ReplicaBroken(Unavailable):
    """A peer of the replica died, froze or gave up; its group cannot be used any more."""

    def __init__(self, message: str) -> None:
        super().__init__(message, retry_after_ns=0)


class Rendezvous:
    """Where the members of a replica find one another; hosted by its lead until all have met."""

    def __init__(self, *, host: str = LOOPBACK) -> None:
        listener = socket.create_server((host, 0), backlog=BACKLOG)
        self._port: int = listener.getsockname()[1]
        self._host = host
        # The store would listen on every interface if it opened the socket itself.
        self._store = TCPStore(
            host, self._port, None, True, wait_for_workers=False, master_listen_fd=listener.detach()
        )

    @property
    def address(self) -> str:
        """What `ReplicaGroup` is given: host and port."""
        return f"{self._host}:{self._port}"


class ReplicaGroup:
    """One process's connections to the rest of its replica; one thread at a time."""

    def __init__(
        self,
        position: Position,
        *,
        rendezvous: str,
        name: str,
        host: str = LOOPBACK,
        device: torch.device = CPU,
        timeout_ns: int = TIMEOUT_NS,
    ) -> None:
        """Meet all other ranks under a name used only once; blocks until they have come.

        `host` is this process's own address, on whose interface its peers reach it.
        Raises: ReplicaBroken if they have not come in time.
        """
        self.position = position
        self._name = name
        self._timeout = timedelta(microseconds=timeout_ns // 1000)
        self._open_sends: list[tuple[Work, torch.Tensor]] = []
        self._replica: Backend | None = None
        self._stage: Backend | None = None
        self._is_broken = False

        new = _new_gloo if device.type == "cpu" else _new_nccl

        def meet() -> None:
            store = self._connect(rendezvous)
            shared, own = f"{name}/replica", f"{name}/stage{position.stage}"
            self._replica = new(
                PrefixStore(shared, store), position.rank, position.ranks, host, self._timeout
            )
            if position.shards > 1:
                self._stage = new(
                    PrefixStore(own, store), position.shard, position.shards, host, self._timeout
                )
            # Past this sum nobody needs the rendezvous any more.
            self._replica.allreduce([torch.zeros(1, device=device)]).wait()

        self._guard(meet)

    def add_up_(self, partial_NC: torch.Tensor) -> None:
        """Replace the tensor by its sum over the shards of this stage, the same on all."""
        stage = self._stage
        if stage is not None:
            self._guard(lambda: stage.allreduce([partial_NC]).wait())

    def add_up_voting_(self, partial_NC: torch.Tensor, *, is_for: bool) -> bool:
        """As `add_up_`, in the same sum: one element more says whether any shard is for what they
        vote on. All shards get the same answer.

        With two shards the sums are bitwise those of `add_up_`; with more, the order of additions
        at the edges of gloo's segments moves by one element.
        """
        ballot = partial_NC.new_empty(partial_NC.numel() + 1)
        ballot[:-1] = partial_NC.reshape(-1)
        ballot[-1] = is_for
        self.add_up_(ballot)
        partial_NC.copy_(ballot[:-1].view_as(partial_NC))
        return bool(ballot[-1].item())

    def join_columns(self, part_RV: torch.Tensor, *, columns: int) -> torch.Tensor | None:
        """Return the shards' even shares of so many columns side by side, on shard 0 alone."""
        stage, shards = self._stage, self.position.shards
        if stage is None:
            return part_RV
        edges = [shard * columns // shards for shard in range(shards + 1)]
        widths = [stop - start for start, stop in pairwise(edges)]
        padded_RW = part_RV.new_zeros((part_RV.shape[0], max(widths)))
        padded_RW[:, : part_RV.shape[1]] = part_RV
        is_root = self.position.shard == 0
        parts = [torch.empty_like(padded_RW) for _ in widths] if is_root else []
        self._guard(lambda: stage.gather(parts, padded_RW, 0).wait())
        if not is_root:
            return None
        return torch.cat(
            [part[:, :width] for part, width in zip(parts, widths, strict=True)], dim=1
        )

    def send_onward(self, hidden_NC: torch.Tensor, *, index: int) -> None:
        """Begin to send a micro-batch to the same shard of the next stage; see `finish_sends`."""
        target = self.position.rank + self.position.shards
        replica = self._of_replica()
        work = self._guard(lambda: replica.send([hidden_NC], target, index))
        self._open_sends.append((work, hidden_NC))

    def receive(self, hidden_NC: torch.Tensor, *, index: int) -> None:
        """Fill the tensor with a micro-batch from the stage before."""
        source = self.position.rank - self.position.shards
        replica = self._of_replica()
        self._guard(lambda: replica.recv([hidden_NC], source, index).wait())

    def finish_sends(self) -> None:
        """Wait until all that `send_onward` began has left."""
        for work, _ in self._open_sends:
            self._guard(work.wait)
        self._open_sends.clear()

    def abort(self) -> None:
        """Close all connections: peers that wait for this process fail at once."""
        self._is_broken = True
        for group in (self._stage, self._replica):
            if group is not None:
                group.abort()
        self._stage = self._replica = None
        self._open_sends.clear()

    def _of_replica(self) -> Backend:
        if self._replica is None:
            raise ReplicaBroken(f"{self._name}: the group was given up")
        return self._replica

    def _connect(self, rendezvous: str) -> Store:
        host, _, port = rendezvous.rpartition(":")
        return TCPStore(host, int(port), None, False, self._timeout)

    def _guard(self, call: Callable[[], Result]) -> Result:
        """Name every failure the same, and let it spread to the others that wait for us."""
        if self._is_broken:
            raise ReplicaBroken(f"{self._name}: the group was given up")
        try:
            return call()
        except RuntimeError as error:
            self.abort()
            reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
            raise ReplicaBroken(f"{self._name}: rank {self.position.rank}: {reason}") from error


def _new_gloo(store: Store, rank: int, ranks: int, host: str, timeout: timedelta) -> Backend:
    options = ProcessGroupGloo._Options()  # type: ignore[attr-defined]
    options._timeout = timeout
    options._devices = [ProcessGroupGloo.create_device(hostname=host)]
    gloo: Backend = ProcessGroupGloo(store, rank, ranks, options)  # type: ignore[assignment]
    return gloo


def _new_nccl(store: Store, rank: int, ranks: int, host: str, timeout: timedelta) -> Backend:
    nccl = getattr(torch.distributed, "ProcessGroupNCCL", None)
    if nccl is None:
        raise ConfigError("this build of torch has no NCCL, which a replica on CUDA needs")
    options = nccl.Options()
    options._timeout = timeout
    backend: Backend = nccl(store, rank, ranks, options)
    return backend
