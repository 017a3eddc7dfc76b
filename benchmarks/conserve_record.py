"""The record of a live run of `bench coserve`, as far as it takes to simulate that run."""

from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from libs.contracts.wire import describe
from libs.kernel.errors import ConfigError
from libs.policy.latency_model import LatencyModel


class _Recorded(BaseModel):
    """Part of a record, of which only what is needed is read."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class RecordedLoad(_Recorded):
    """What was sent; every value as text, as the record has it."""

    requests: int
    slices: int
    seed: int
    trace: str


class RecordedOptions(_Recorded):
    """How the benchmark was called."""

    load: RecordedLoad
    model: str
    load_share: float
    kv_mib: int
    step_tokens_max: int
    threads: int = 1


class RecordedCalibration(_Recorded):
    """What it measured of the engine first."""

    latency: LatencyModel
    latency_error: float
    ttft_slo_ms: float
    tbt_slo_ms: float


class RecordedRow(_Recorded):
    """What a policy came to."""

    policy: str
    online_ttft_p99_ms: float
    online_tbt_p99_ms: float
    offline_tok_s: float
    total_tok_s: float
    prediction_bias: float


class RecordedProvenance(_Recorded):
    """Where it came from."""

    commit: str
    options: RecordedOptions


class LiveRecord(_Recorded):
    """A record of `bench coserve`."""

    rows: tuple[RecordedRow, ...]
    capacity_tok_s: float
    calibration: RecordedCalibration
    record: RecordedProvenance


def read_live_record(path: Path) -> LiveRecord:
    """Raises: ConfigError that names the file and the field."""
    try:
        return LiveRecord.model_validate_json(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    except ValidationError as error:
        raise ConfigError(f"{path}: no record of `bench coserve`: {describe(error)}") from error
