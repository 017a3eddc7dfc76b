"""The published spot scenarios of SpotServe (ASPLOS'24, Figures 5 and 8), by name.

A_S and B_S are two stretches of a real trace of g4dn instances on AWS with 120 s for launch and
initialisation; `+O` adds the on-demand nodes of the paper's policy, and the primed ones follow a
demand that changes. A node is a g4dn.12xlarge (4 x T4). Nodes are numbered as they come.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from libs.kernel.errors import ConfigError
from libs.kernel.units import NS_PER_S
from loadgen.traces.availability import AvailabilityTrace, NodeChange

SOURCE: Final = "SpotServe (ASPLOS'24), published steps; Hsword/SpotServe, Apache-2.0"


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What changes at a second."""

    at_s: int
    nodes_come: int = 0
    node_numbers_gone: tuple[int, ...] = ()
    required_requests_per_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """The steps in order of time, and the second at which the scenario ends."""

    steps: Sequence[Step]
    end_at_s: int
    spot_nodes_at_s: Mapping[int, int] = field(default_factory=dict)
    """Of a scenario with on-demand nodes: how many of its nodes are spot, from a second on."""


_A_S: Final = {0: 7, 240: 8, 360: 10, 600: 9, 900: 10, 1200: 8}
_B_S: Final = {0: 10, 120: 8, 240: 7, 720: 8, 960: 9}
SCENARIOS: Final[Mapping[str, Scenario]] = {
    "A_S": Scenario(
        steps=(
            Step(at_s=0, nodes_come=7),
            Step(at_s=240, nodes_come=1),
            Step(at_s=360, nodes_come=2),
            Step(at_s=600, node_numbers_gone=(8,)),
            Step(at_s=900, nodes_come=1),
            Step(at_s=1200, node_numbers_gone=(3, 10)),
        ),
        end_at_s=1320,
    ),
    "B_S": Scenario(
        steps=(
            Step(at_s=0, nodes_come=10),
            Step(at_s=120, node_numbers_gone=(4, 8)),
            Step(at_s=240, node_numbers_gone=(0,)),
            Step(at_s=720, nodes_come=1),
            Step(at_s=960, nodes_come=1),
        ),
        end_at_s=1020,
    ),
    "A_S+O": Scenario(
        steps=(
            Step(at_s=0, nodes_come=7),
            Step(at_s=120, nodes_come=3),
            Step(at_s=600, node_numbers_gone=(8,)),
            Step(at_s=690, nodes_come=1),
            Step(at_s=1200, node_numbers_gone=(0, 7)),
            Step(at_s=1290, nodes_come=2),
        ),
        end_at_s=1380,
        spot_nodes_at_s=_A_S,
    ),
    "B_S+O": Scenario(
        steps=(
            Step(at_s=0, nodes_come=10),
            Step(at_s=120, node_numbers_gone=(4, 8)),
            Step(at_s=210, nodes_come=2),
            Step(at_s=240, node_numbers_gone=(0,)),
            Step(at_s=330, nodes_come=1),
        ),
        end_at_s=720,
        spot_nodes_at_s=_B_S,
    ),
    "A'_S+O": Scenario(
        steps=(
            Step(at_s=0, nodes_come=7, required_requests_per_s=0.6),
            Step(at_s=120, nodes_come=3),
            Step(at_s=300, required_requests_per_s=0.8),
            Step(at_s=360, nodes_come=2),
            Step(at_s=600, node_numbers_gone=(8, 9), required_requests_per_s=0.6),
        ),
        end_at_s=1140,
        spot_nodes_at_s=_A_S,
    ),
    "B'_S+O": Scenario(
        steps=(
            Step(at_s=0, nodes_come=10, required_requests_per_s=0.6),
            Step(at_s=120, node_numbers_gone=(4, 8)),
            Step(at_s=210, nodes_come=2),
            Step(at_s=240, node_numbers_gone=(0,)),
            Step(at_s=300, required_requests_per_s=0.8),
            Step(at_s=330, nodes_come=1),
            Step(at_s=450, nodes_come=2),
            Step(at_s=600, node_numbers_gone=(13, 14), required_requests_per_s=0.6),
        ),
        end_at_s=1140,
        spot_nodes_at_s=_B_S,
    ),
}
FLUCTUATING_RATES_PER_S: Final = (
    0.58596315, 0.584723675, 0.560099725, 0.546481625, 0.65639715, 0.681108175, 0.702578075,
    0.68554255, 0.627063625, 0.613576675, 0.567674175, 0.566124025, 0.5755335, 0.575192725,
    0.56448465, 0.571223825, 0.579436825, 0.560437275, 0.5492003,
)  # fmt: skip
"""Requests per second of each minute of Figure 8; after the Microsoft Azure Functions trace."""


def scenario(name: str) -> AvailabilityTrace:
    """Return the scenario of this name. Raises: ConfigError that lists the names."""
    found = SCENARIOS.get(name)
    if found is None:
        raise ConfigError(f"no scenario {name!r}; there are {', '.join(SCENARIOS)}")
    changes = []
    named = 0
    for step in found.steps:
        added = tuple(f"node-{number}" for number in range(named, named + step.nodes_come))
        named += step.nodes_come
        changes.append(
            NodeChange(
                at_ns=step.at_s * NS_PER_S,
                added=added,
                removed=tuple(f"node-{number}" for number in step.node_numbers_gone),
                required_requests_per_s=step.required_requests_per_s,
            )
        )
    return AvailabilityTrace(
        name=name, source=SOURCE, changes=tuple(changes), end_at_ns=found.end_at_s * NS_PER_S
    )
