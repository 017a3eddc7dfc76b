"""A replica over real processes: the lead in this one, members in others, kept for many tests."""

import json
import os
import select
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

from libs.engine.loading import EngineOptions
from libs.engine.parallel.group import Rendezvous, ReplicaGroup
from libs.engine.parallel.member import ReplicaMember, read_replica_model
from libs.engine.parallel.position import positions_of
from libs.engine.parallel.weight_store import WeightStore
from libs.engine.requests import SequenceRequest
from libs.engine.scheduler import Scheduler
from libs.engine.steps import StepPlan, TokenEmitted
from libs.kernel.units import NS_PER_S
from tests.integration.engine.replica_member import build_member, export_piece, import_piece

SCRIPT = Path(__file__).with_name("replica_member.py")
ROOT = Path(__file__).parents[3]
NAMES = count()


class Member:
    """One process of the fleet."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(SCRIPT)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
        )
        self.pid = self._process.pid

    def tell(self, **command: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(command).encode() + b"\n")
        self._process.stdin.flush()

    def answer(self, *, seconds_max: float = 60.0) -> dict[str, str]:
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], seconds_max)
        assert ready, "no answer"
        answer: dict[str, str] = json.loads(self._process.stdout.readline())
        return answer

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()


@dataclass
class Fleet:
    """As many members as the largest replica so far asked for."""

    members: list[Member] = field(default_factory=list)

    def want(self, members: int) -> list[Member]:
        new = [Member() for _ in range(members - len(self.members))]
        for member in new:
            assert member.answer()["answer"] == "ready"
        self.members += new
        return self.members[:members]

    def lose(self, member: Member) -> None:
        member.kill()
        self.members.remove(member)

    def stop(self) -> None:
        for member in self.members:
            member.kill()


@dataclass
class Replica:
    """A formed replica and its scheduler."""

    lead: ReplicaMember
    members: list[Member]
    scheduler: Scheduler
    plans: list[StepPlan] = field(default_factory=list)

    def join(self, timeout_ns: int) -> None:
        """Form the group, in all processes at the same time."""
        rendezvous, name = Rendezvous(), f"replica-{next(NAMES)}"
        for member in self.members:
            member.tell(
                command="join", rendezvous=rendezvous.address, name=name, timeout_ns=timeout_ns
            )
        self.lead.join(
            ReplicaGroup(
                self.lead.position,
                rendezvous=rendezvous.address,
                name=name,
                timeout_ns=timeout_ns,
            )
        )

    def send(self) -> StepPlan:
        """Plan a step and tell the members."""
        plan = self.scheduler.schedule(now_ns=0)
        assert plan is not None
        self.plans.append(plan)
        self.tell(plan, yield_after_s=[None] * len(self.members))
        return plan

    def tell(self, plan: StepPlan, *, yield_after_s: Sequence[float | None]) -> None:
        """Let the members run a plan, each of which may be asked to yield after some time."""
        entries = [asdict(entry) for entry in plan.entries]
        for member, after_s in zip(self.members, yield_after_s, strict=True):
            member.tell(
                command="plan",
                step_id=plan.step_id,
                entries=entries,
                layers_between_safepoints=plan.layers_between_safepoints,
                yield_after_s=after_s,
            )

    def step(self) -> tuple[TokenEmitted, ...]:
        result = self.lead.runner.run(self.send())
        assert result is not None
        emitted = self.scheduler.account(result, now_ns=0)
        self.scheduler.check_invariants()
        return emitted

    def export_kv(self, rank: int, piece: dict[str, Any], path: Path) -> None:
        """Let a rank write a piece of its KV to a file."""
        if rank == self.lead.position.rank:
            path.write_bytes(export_piece(self.lead, piece))
            return
        self._copy("export", rank, piece, path)

    def import_kv(self, rank: int, piece: dict[str, Any], path: Path) -> None:
        """Let a rank read a piece of its KV from a file."""
        if rank == self.lead.position.rank:
            import_piece(self.lead, piece, path.read_bytes())
            return
        self._copy("import", rank, piece, path)

    def _copy(self, command: str, rank: int, piece: dict[str, Any], path: Path) -> None:
        ranks = [r for r in range(self.lead.position.ranks) if r != self.lead.position.rank]
        member = self.members[ranks.index(rank)]
        member.tell(command=command, piece=piece, path=str(path))
        member.tell(command="sync")
        assert member.answer()["answer"] == "in sync"

    def run(self, requests: Sequence[SequenceRequest]) -> dict[str, list[int]]:
        answers = self.answers(requests)
        return {name: [token.token_id for token in tokens] for name, tokens in answers.items()}

    def answers(self, requests: Sequence[SequenceRequest]) -> dict[str, list[TokenEmitted]]:
        for request in requests:
            self.scheduler.add(request, now_ns=0)
        tokens: dict[str, list[TokenEmitted]] = {request.sequence_id: [] for request in requests}
        while self.scheduler.sequence_ids:
            for token in self.step():
                tokens[token.sequence_id].append(token)
        return tokens


def form_replica(
    fleet: Fleet,
    folder: Path,
    *,
    stages: int,
    shards: int,
    store: WeightStore | None = None,
    members: list[Member] | None = None,
    kv_blocks: int = 128,
    tokens_min: int = 4,
    timeout_ns: int = 30 * NS_PER_S,
    **options: object,
) -> Replica:
    """Tell the members their positions, load the lead's in this process, and let all meet.

    `tokens_min` is so low that micro-batches are cut although the tests' steps are small.
    """
    engine_options = EngineOptions(dtype="float32", **options)  # type: ignore[arg-type]
    model = read_replica_model(str(folder), options=engine_options)
    positions = positions_of(model.config, stages=stages, shards=shards)
    lead_position = next(position for position in positions if position.is_lead)
    others = [position.rank for position in positions if not position.is_lead]
    members = fleet.want(len(others)) if members is None else members
    for member, rank in zip(members, others, strict=True):
        member.tell(
            command="load",
            folder=str(folder),
            options=options,
            stages=stages,
            shards=shards,
            rank=rank,
            kv_blocks=kv_blocks,
            tokens_min=tokens_min,
        )
        member.tell(command="sync")
    lead = build_member(
        model,
        lead_position,
        model.new_store() if store is None else store,
        kv_blocks=kv_blocks,
        tokens_min=tokens_min,
    )
    for member in members:
        assert member.answer()["answer"] == "in sync"
    replica = Replica(lead, members, Scheduler(lead.scheduler_options))
    if others:
        replica.join(timeout_ns)
    return replica
