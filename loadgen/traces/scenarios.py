"""The published spot scenarios of SpotServe (ASPLOS'24, Figure 5), by name.

Step counts as published: nodes there are from a second on. A_S and B_S are two stretches of a real
trace of g4dn instances on AWS with 120 s for launch and initialisation; `+O` adds the on-demand
nodes of the paper's policy. A node is a g4dn.12xlarge (4 x T4). Which node goes is not part of the
step counts and is drawn from a seed.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from libs.kernel.errors import ConfigError
from libs.kernel.rng import Rng
from libs.kernel.units import NS_PER_S
from loadgen.traces.availability import AvailabilityTrace, from_counts

SOURCE: Final = "SpotServe (ASPLOS'24), published step counts; Hsword/SpotServe, Apache-2.0"


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """Nodes from a second on, and the second at which the scenario ends."""

    nodes_at_s: Mapping[int, int]
    end_at_s: int


SCENARIOS: Final[Mapping[str, Scenario]] = {
    "A_S": Scenario(nodes_at_s={0: 7, 240: 8, 360: 10, 600: 9, 900: 10, 1200: 8}, end_at_s=1320),
    "B_S": Scenario(nodes_at_s={0: 10, 120: 8, 240: 7, 720: 8, 960: 9}, end_at_s=1020),
    "A_S+O": Scenario(
        nodes_at_s={0: 7, 120: 10, 600: 9, 690: 10, 1200: 8, 1290: 10}, end_at_s=1380
    ),
    "B_S+O": Scenario(nodes_at_s={0: 10, 120: 8, 210: 10, 240: 9, 330: 10}, end_at_s=720),
}


def scenario(name: str, *, rng: Rng) -> AvailabilityTrace:
    """Return the scenario of this name. Raises: ConfigError that lists the names."""
    found = SCENARIOS.get(name)
    if found is None:
        raise ConfigError(f"no scenario {name!r}; there are {', '.join(SCENARIOS)}")
    return from_counts(
        [(at_s * NS_PER_S, nodes) for at_s, nodes in found.nodes_at_s.items()],
        name=name,
        source=SOURCE,
        end_at_ns=found.end_at_s * NS_PER_S,
        rng=rng.child("nodes gone"),
    )
