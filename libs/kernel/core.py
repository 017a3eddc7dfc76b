"""What a core is: a synchronous object that owns its state alone and turns events into commands.

A core imports no clock, no randomness, no network and no torch. Time reaches it as `now_ns`
(monotonic, local). Each command that starts work ends in exactly one event that carries the same
`op_id`. Timers are commands too: setting a key again replaces it, and a core ignores a firing that
it no longer expects.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from libs.kernel.errors import InvariantViolation

EventT_contra = TypeVar("EventT_contra", contravariant=True)
CommandT_co = TypeVar("CommandT_co", covariant=True)
ValueT = TypeVar("ValueT")


class Core(Protocol[EventT_contra, CommandT_co]):
    """A decision maker that live shells and the simulator interpret alike."""

    def handle(self, event: EventT_contra, *, now_ns: int) -> Sequence[CommandT_co]:
        """Apply one event and return what the world should now do, in order."""

    def check_invariants(self) -> None:
        """Raise InvariantViolation if the state contradicts itself. Called after every event in
        tests and simulation."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Caused:
    """What enters or leaves a core. It says on whose behalf, so that a story can be told of it."""

    cause_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation(Caused):
    """A command that starts work, or the event that says how that work ended."""

    op_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SetTimer(Caused):
    """Ask for TimerFired with this key after the delay; replaces a timer of the same key."""

    key: str
    after_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TimerFired(Caused):
    """The delay of the timer with this key has passed."""

    key: str


def require(condition: bool, message: str) -> None:
    """Raise InvariantViolation unless the condition holds; stays on under `python -O`."""
    if not condition:
        raise InvariantViolation(message)


def present(value: ValueT | None, message: str) -> ValueT:
    """Return the value; raise InvariantViolation if there is none."""
    if value is None:
        raise InvariantViolation(message)
    return value
