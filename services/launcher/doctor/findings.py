"""What a check found, and what it was to look at."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from libs.kernel.units import MIB
from libs.runtime.clock import Clock, SystemClock


class Outcome(StrEnum):
    """How a check ended."""

    OK = "ok"
    NOTE = "note"
    """Works, but not as well as it could, or could not be looked at."""
    FAULT = "fault"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One line of the report."""

    check: str
    outcome: Outcome
    what: str
    remedy: str = ""
    """What to do; never empty for a fault."""

    def __post_init__(self) -> None:
        assert self.remedy or self.outcome is not Outcome.FAULT


@dataclass(frozen=True, slots=True, kw_only=True)
class Patient:
    """The machine and the settings that are looked at. Nothing else is read."""

    nats_url: str | None = None
    """A broker that runs; None: the one that `tideserve up` would start."""
    ports: tuple[int, ...] = ()
    """Where the fleet is going to listen."""
    data_folder: Path
    model: str | None = None
    disk_bytes_min: int = 2048 * MIB
    """Room for the journal and the logs; a fleet under load keeps far less than that."""
    rate_bytes: int = 64 * MIB
    """Sent over loopback to measure a transport."""
    environment: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))
    pci_folder: Path = Path("/sys/bus/pci/devices")
    driver_file: Path = Path("/proc/driver/nvidia/version")
    clock: Clock = field(default_factory=SystemClock)


def ok(check: str, what: str) -> Finding:
    """All is well."""
    return Finding(check=check, outcome=Outcome.OK, what=what)


def note(check: str, what: str, *, remedy: str = "") -> Finding:
    """Worth knowing; nothing is broken."""
    return Finding(check=check, outcome=Outcome.NOTE, what=what, remedy=remedy)


def fault(check: str, what: str, *, remedy: str) -> Finding:
    """TideServe will not work, or not as it promises."""
    return Finding(check=check, outcome=Outcome.FAULT, what=what, remedy=remedy)
