"""Everything that happened in a run, in order: for people, for files, and for the digest."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

from libs.kernel.units import seconds
from libs.sim.world import World

Value: TypeAlias = str | int | float | bool | tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Happening:
    """One line of the log."""

    at_ns: int
    entity: str
    """Whom it befell."""
    what: str
    details: tuple[tuple[str, Value], ...]

    def json_line(self) -> str:
        """Return it as one line of JSON."""
        fields = {"at_s": seconds(self.at_ns), "entity": self.entity, "what": self.what}
        return json.dumps({**fields, **dict(self.details)})

    def text_line(self) -> str:
        """Return it as one line for people."""
        told = " ".join(f"{name}={_shown(value)}" for name, value in self.details)
        return f"{seconds(self.at_ns):10.3f} s  {self.entity}  {self.what}  {told}".rstrip()

    def is_about(self, entity: str) -> bool:
        """Whether the entity is the one it befell, or is named in the details."""
        return entity == self.entity or any(
            entity == value or (isinstance(value, tuple) and entity in value)
            for _, value in self.details
        )


class EventLog:
    """Appends to the history of a world; at most `happenings_max`, then only the digest grows."""

    def __init__(self, world: World, *, happenings_max: int = 5_000_000) -> None:
        self._world = world
        self._happenings: list[Happening] = []
        self._happenings_max = happenings_max
        self.happenings_dropped = 0

    def add(self, entity: str, what: str, **details: Value) -> None:
        """Note what befell the entity now."""
        self._world.note(f"{entity} {what} {sorted(details.items())}")
        if len(self._happenings) >= self._happenings_max:
            self.happenings_dropped += 1
            return
        self._happenings.append(
            Happening(
                at_ns=self._world.now_ns,
                entity=entity,
                what=what,
                details=tuple(details.items()),
            )
        )

    def __iter__(self) -> Iterator[Happening]:
        return iter(self._happenings)

    def story(self, entity: str) -> list[Happening]:
        """Return everything that names the entity, in order."""
        return [happening for happening in self._happenings if happening.is_about(entity)]


def _shown(value: Value) -> str:
    return ",".join(value) if isinstance(value, tuple) else str(value)
