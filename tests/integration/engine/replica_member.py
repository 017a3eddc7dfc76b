"""A member of a replica in a process of its own: reads commands, one JSON object a line.

`load` builds a position, `join` forms its group; `plan` runs a step, which may be asked to yield in
the middle, and answers only if the replica broke; `export` and `import` copy KV through a file;
`sync` answers when everything before it is done. Answers are one JSON object a line.
"""

import json
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from libs.engine.checkpoint import Checkpoint
from libs.engine.kv_blocks import kv_piece_bytes
from libs.engine.loading import EngineOptions
from libs.engine.parallel import member
from libs.engine.parallel.group import ReplicaBroken, ReplicaGroup
from libs.engine.parallel.member import (
    ReplicaMember,
    ReplicaModel,
    StageRunner,
    new_attention,
    read_replica_model,
)
from libs.engine.parallel.position import Position, position_at
from libs.engine.parallel.slices import all_slices_of
from libs.engine.parallel.weight_store import WeightStore
from libs.engine.steps import PlanEntry, StepPlan


def build_member(
    model: ReplicaModel, position: Position, store: WeightStore, *, kv_blocks: int, tokens_min: int
) -> ReplicaMember:
    """Load what is missing, drop what is not needed, and build the position."""
    slices = all_slices_of(model.config, position, element_bytes=store.element_bytes)
    with Checkpoint(model.folder) as checkpoint:
        store.load(slices, checkpoint)
    store.keep_only(slices)
    attention = new_attention(model, position, kv_blocks=kv_blocks)
    return member.build_member(model, position, store, attention, micro_batch_tokens_min=tokens_min)


class MemberProcess:
    """What the process knows."""

    def __init__(self) -> None:
        self.store: WeightStore | None = None
        self.folder: Path | None = None
        self.member: ReplicaMember | None = None

    def load(self, command: dict[str, Any]) -> None:
        folder = Path(command["folder"])
        options = EngineOptions(dtype="float32", **command["options"])
        model = read_replica_model(str(folder), options=options)
        if self.folder != folder or self.store is None:
            self.folder, self.store = folder, model.new_store()
        position = position_at(
            model.config,
            stages=command["stages"],
            shards=command["shards"],
            stage=command["rank"] // command["shards"],
            shard=command["rank"] % command["shards"],
        )
        self.member = build_member(
            model,
            position,
            self.store,
            kv_blocks=command["kv_blocks"],
            tokens_min=command["tokens_min"],
        )

    def join(self, command: dict[str, Any]) -> None:
        assert self.member is not None
        group = ReplicaGroup(
            self.member.position,
            rendezvous=command["rendezvous"],
            name=command["name"],
            timeout_ns=command["timeout_ns"],
        )
        self.member.join(group)

    def plan(self, command: dict[str, Any]) -> None:
        entries = tuple(
            PlanEntry(**{name: tuple(v) if isinstance(v, list) else v for name, v in entry.items()})
            for entry in command["entries"]
        )
        assert self.member is not None
        plan = StepPlan(
            step_id=command["step_id"],
            entries=entries,
            opened=(),
            closed=(),
            layers_between_safepoints=command["layers_between_safepoints"],
        )
        with asking_to_yield(self.member.runner, plan.step_id, after_s=command["yield_after_s"]):
            self.member.runner.run(plan)

    def export_kv(self, command: dict[str, Any]) -> None:
        assert self.member is not None
        Path(command["path"]).write_bytes(export_piece(self.member, command["piece"]))

    def import_kv(self, command: dict[str, Any]) -> None:
        assert self.member is not None
        import_piece(self.member, command["piece"], Path(command["path"]).read_bytes())


@contextmanager
def asking_to_yield(runner: StageRunner, step_id: int, *, after_s: float | None) -> Iterator[None]:
    """Ask a step to yield, from another thread, at a time when it may be at any point."""
    if after_s is None:
        yield
        return
    asking = threading.Timer(after_s, runner.request_yield, [step_id])
    asking.start()
    yield
    asking.join()


def export_piece(member: ReplicaMember, piece: dict[str, Any]) -> bytes:
    """Copy out {layers, heads, block_ids}."""
    shape = member.attention.shape
    layers, heads = range(*piece["layers"]), range(*piece["heads"])
    out = bytearray(
        kv_piece_bytes(
            layers=len(layers),
            heads=len(heads),
            blocks=len(piece["block_ids"]),
            block_tokens=shape.block_tokens,
            head_size=shape.head_size,
            element_bytes=4,
        )
    )
    member.attention.export_blocks(
        layers=layers, heads=heads, block_ids=piece["block_ids"], out=memoryview(out)
    )
    return bytes(out)


def import_piece(member: ReplicaMember, piece: dict[str, Any], content: bytes) -> None:
    """Copy in {layers, heads, block_ids}."""
    member.attention.import_blocks(
        layers=range(*piece["layers"]),
        heads=range(*piece["heads"]),
        block_ids=piece["block_ids"],
        data=memoryview(content),
    )


def main() -> None:
    torch.set_num_threads(1)
    process = MemberProcess()
    print(json.dumps({"answer": "ready"}), flush=True)
    for line in sys.stdin:
        command = json.loads(line)
        try:
            match command["command"]:
                case "load":
                    process.load(command)
                case "join":
                    process.join(command)
                case "plan":
                    process.plan(command)
                case "export":
                    process.export_kv(command)
                case "import":
                    process.import_kv(command)
                case "sync":
                    print(json.dumps({"answer": "in sync"}), flush=True)
        except ReplicaBroken as error:
            print(json.dumps({"answer": "broken", "reason": str(error)}), flush=True)


if __name__ == "__main__":
    main()
