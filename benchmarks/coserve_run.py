"""Keeps what a run of the co-serving benchmark has measured, so that it can go on after being cut.

    FOLDER/calibration.json               what was asked for, and what the engine can do
    FOLDER/slices/NUMBER-POLICY.json      one policy on one slice

A file appears whole or not at all; a run that finds one does not measure it again.
"""

import json
from dataclasses import asdict
from pathlib import Path

from pydantic import TypeAdapter

from benchmarks.coserve_rows import SliceResult
from libs.kernel.errors import ConfigError
from libs.runtime.whole_file import write_whole_file

_RESULTS = TypeAdapter(SliceResult)


class RunFolder:
    """The folder of one run; None: nothing is kept."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        if folder is not None:
            (folder / "slices").mkdir(parents=True, exist_ok=True)

    def calibration(self, *, options: dict[str, object]) -> str | None:
        """Return what was kept, as JSON. Raises: ConfigError if it is of other options."""
        file = self._calibration_file
        if file is None or not file.exists():
            return None
        kept = json.loads(file.read_text(encoding="utf-8"))
        if kept["options"] != options:
            raise ConfigError(f"--out: {self._folder} was begun with other options")
        return json.dumps(kept["calibration"])

    def keep_calibration(self, calibration: str, *, options: dict[str, object]) -> None:
        """Keep a calibration, given as JSON, for these options."""
        file = self._calibration_file
        if file is not None:
            kept = {"options": options, "calibration": json.loads(calibration)}
            write_whole_file(file, json.dumps(kept))

    def result(self, number: int, policy: str) -> SliceResult | None:
        """Return what this policy did with this slice, if it was measured."""
        file = self._slice_file(number, policy)
        if file is None or not file.exists():
            return None
        return _RESULTS.validate_json(file.read_bytes())

    def keep_result(self, number: int, policy: str, result: SliceResult) -> None:
        """Keep what this policy did with this slice."""
        file = self._slice_file(number, policy)
        if file is not None:
            write_whole_file(file, json.dumps(asdict(result)))

    @property
    def _calibration_file(self) -> Path | None:
        return None if self._folder is None else self._folder / "calibration.json"

    def _slice_file(self, number: int, policy: str) -> Path | None:
        name = "".join(letter if letter.isalnum() else "_" for letter in policy)
        return None if self._folder is None else self._folder / "slices" / f"{number}-{name}.json"
