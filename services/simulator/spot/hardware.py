"""What nodes are made of: links, disks, how long things take to start, and what an hour costs."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from libs.kernel.errors import ConfigError
from libs.kernel.units import NS_PER_S
from libs.policy.paper_profiles import ON_DEMAND_USD_PER_HOUR, SPOT_USD_PER_HOUR, T4_BYTES


@dataclass(frozen=True, slots=True, kw_only=True)
class RestartCosts:
    """What it takes to begin anew before the first byte is loaded, item by item."""

    daemons_ns: int
    """To end the processes that hold the weights and start them again; only where all restarts."""
    engine_ns: int
    """To start the processes of an engine and create their device contexts."""
    group_ns: int
    """For all ranks to find one another and to open their channels."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hardware:
    """One kind of node."""

    name: str
    source: str
    """Where the numbers come from, for people."""
    gpus_per_node: int
    gpu_bytes: int
    network_bytes_per_s: int
    """Of a node, each way, shared by its GPUs."""
    local_bytes_per_s: int
    """Between the GPUs of one node, together."""
    disk_bytes_per_s: int
    """Of a node, from a checkpoint on its own disk into the memory of its GPUs."""
    launch_ns: int
    """From asking for a node until it can be used: launch and initialisation."""
    group_setup_ns: int
    """To form a process group beside one that runs."""
    restart: RestartCosts
    spot_usd_per_hour: float
    on_demand_usd_per_hour: float


G4DN_12XLARGE: Final = Hardware(
    name="g4dn.12xlarge",
    source="SpotServe (ASPLOS'24) section 6.1 and artifact; restart costs calibrated, see "
    "docs/SIMULATION.md",
    gpus_per_node=4,
    gpu_bytes=T4_BYTES,
    network_bytes_per_s=50_000_000_000 // 8,
    local_bytes_per_s=50_000_000_000 // 8,
    disk_bytes_per_s=9_500_000_000 // 8,
    launch_ns=120 * NS_PER_S,
    group_setup_ns=NS_PER_S // 2,
    restart=RestartCosts(daemons_ns=5 * NS_PER_S, engine_ns=3 * NS_PER_S, group_ns=2 * NS_PER_S),
    spot_usd_per_hour=SPOT_USD_PER_HOUR,
    on_demand_usd_per_hour=ON_DEMAND_USD_PER_HOUR,
)
HARDWARE: Final[Mapping[str, Hardware]] = {G4DN_12XLARGE.name: G4DN_12XLARGE}


def hardware_of(name: str) -> Hardware:
    """Return the hardware of this name. Raises: ConfigError that lists the names."""
    if name not in HARDWARE:
        raise ConfigError(f"hardware: no {name!r}; there are {', '.join(HARDWARE)}")
    return HARDWARE[name]
