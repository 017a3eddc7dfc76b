"""The order in which a hand-over's layers move: Algorithm 2 of SpotServe, where sizes are known."""

from collections.abc import Iterable

from libs.contracts.handover import PlacedWorker, ReplicaRoster
from libs.contracts.handover_record import Handover
from libs.policy.device_mapping import HeldPosition
from libs.policy.migration_order import ReplacedPosition, layer_growth, order_layers
from libs.policy.shapes import ReplicaShape
from services.migrator.options import MigratorOptions


def layer_order_of(handover: Handover, options: MigratorOptions) -> tuple[int, ...]:
    """Return the layers so that no worker needs more than its buffer beyond what it held.

    Empty, which is ascending, where the model's sizes are not known.
    """
    if options.model_bytes is None:
        return ()
    before = _held(source.replica for source in handover.sources)
    after = _held(target.replica for target in handover.targets if not target.is_in_place)
    workers = [
        ReplacedPosition(before=before.get(worker_id), after=after.get(worker_id))
        for worker_id in sorted(before.keys() | after.keys())
    ]
    growth = layer_growth(options.model_bytes, workers)
    return order_layers(growth, bytes_max=options.load_buffer_bytes_max).layers


def _held(replicas: Iterable[ReplicaRoster]) -> dict[str, HeldPosition]:
    return {
        worker.worker_id: _position(replica, worker)
        for replica in replicas
        for worker in replica.workers
    }


def _position(replica: ReplicaRoster, worker: PlacedWorker) -> HeldPosition:
    return HeldPosition(
        replica_id=replica.replica_id,
        shape=ReplicaShape(stages=replica.stages, shards=replica.shards),
        stage=worker.stage,
        shard=worker.shard,
    )
