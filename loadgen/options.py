"""What a run is told, as one checked value; it is written into every report."""

from dataclasses import asdict, dataclass
from pathlib import Path

from libs.kernel.errors import ConfigError
from libs.kernel.units import NS_PER_MS, NS_PER_S
from loadgen.address import require_allowed
from loadgen.clients.over_http import Endpoint
from loadgen.clients.sampling import Sampling
from loadgen.lengths import LengthLimits
from loadgen.report import Slo
from loadgen.run import RunLimits

DEFAULT_NATS = "nats://127.0.0.1:4222"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """The options of `python -m loadgen run`, under the same names. Raises: ConfigError."""

    nats: str | None = None
    http: str | None = None
    model: str = "tide-tiny"
    api_key_file: Path | None = None
    """A file, for a key has no place in shell histories and lists of processes."""
    endpoint: Endpoint = Endpoint.COMPLETIONS
    allow_remote: bool = False

    users: int | None = None
    """Given: a closed loop of this many. None: an open loop."""
    think_ms: float = 0.0
    rate: float | None = None
    """Requests per second; outside bursts, where there are bursts."""
    cv: float = 1.0
    """Of the gaps between arrivals: 0 even, 1 Poisson, anything else gamma."""
    burst_rate: float | None = None
    burst_s: float = 5.0
    quiet_s: float = 20.0
    rates: Path | None = None
    trace: Path | None = None
    speed: float = 1.0

    lengths: Path | None = None
    prompt_tokens: int = 64
    output_tokens: int = 32
    prompt_divisor: int = 1
    output_divisor: int = 1
    prompt_tokens_max: int | None = None
    output_tokens_max: int | None = None
    token_id_min: int = 16
    """Below lie the special tokens of most vocabularies."""
    token_id_max: int = 2047
    tokenizer: Path | None = None
    """A tokenizer.json; given, prompts are text of the wanted length, else token ids."""
    temperature: float = 0.0
    stop_at_end_token: bool = False

    requests: int = 100
    duration_s: float | None = None
    streams_open_max: int = 1_000
    request_timeout_s: float = 120.0
    seed: int = 0

    ttft_slo_ms: float | None = None
    tpot_slo_ms: float | None = None
    tbt_slo_ms: float | None = None
    end_to_end_slo_ms: float | None = None
    allow_rejected: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.nats is not None and self.http is not None:
            raise ConfigError("give one of --nats and --http")
        for url, option in ((self.nats, "--nats"), (self.http, "--http")):
            if url is not None:
                require_allowed(url, option=option, is_remote_allowed=self.allow_remote)
        if self.http is None and self.endpoint is Endpoint.CHAT:
            raise ConfigError("--endpoint chat: needs --http")
        if self.endpoint is Endpoint.CHAT and self.tokenizer is None:
            raise ConfigError("--endpoint chat: takes text, so give --tokenizer")
        self._check_arrivals()
        # Each refuses what it cannot be made of.
        self.run_limits()
        self.length_limits()
        self.slo()

    def _check_arrivals(self) -> None:
        if self.users is not None and (self.rate is not None or self.rates is not None):
            raise ConfigError("--users is a closed loop: it has no --rate and no --rates")
        if self.rate is not None and self.rates is not None:
            raise ConfigError("give one of --rate and --rates")
        if self.burst_rate is not None and self.rate is None:
            raise ConfigError("--burst-rate: needs --rate for the time between bursts, 0 if none")
        if self.trace is not None and self.lengths is not None:
            raise ConfigError("--trace has lengths of its own: leave out --lengths")
        has_arrivals = self.trace is not None or self.rate is not None or self.rates is not None
        if self.users is None and not has_arrivals:
            raise ConfigError(
                "give --rate, --rates or --trace for an open loop, --users for a closed"
            )
        if self.think_ms < 0:
            raise ConfigError("--think-ms: must not be negative")

    @property
    def nats_url(self) -> str:
        """Where to connect if not over HTTP."""
        return self.nats or DEFAULT_NATS

    def run_limits(self) -> RunLimits:
        """Return the bounds of the run."""
        duration_s = self.duration_s
        return RunLimits(
            requests_max=self.requests,
            duration_ns=None if duration_s is None else round(duration_s * NS_PER_S),
            streams_open_max=self.streams_open_max,
            request_timeout_ns=round(self.request_timeout_s * NS_PER_S),
        )

    def length_limits(self) -> LengthLimits:
        """Return how a trace's lengths are fitted."""
        return LengthLimits(
            prompt_divisor=self.prompt_divisor,
            output_divisor=self.output_divisor,
            prompt_tokens_max=self.prompt_tokens_max,
            output_tokens_max=self.output_tokens_max,
        )

    def slo(self) -> Slo:
        """Return what a good answer keeps."""
        return Slo(
            ttft_ns=_ns(self.ttft_slo_ms),
            tpot_ns=_ns(self.tpot_slo_ms),
            tbt_ns=_ns(self.tbt_slo_ms),
            end_to_end_ns=_ns(self.end_to_end_slo_ms),
        )

    def sampling(self) -> Sampling:
        """Return what all requests share."""
        return Sampling(temperature=self.temperature, is_length_exact=not self.stop_at_end_token)

    def api_key(self) -> str:
        """Return the key for the server; empty if it asks for none. Raises: ConfigError."""
        if self.api_key_file is None:
            return ""
        try:
            return self.api_key_file.read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"--api-key-file: {error}") from None

    def as_object(self) -> dict[str, object]:
        """Return the options for a report."""
        return {
            name: str(value) if isinstance(value, Path) else value
            for name, value in asdict(self).items()
        }


def _ns(value_ms: float | None) -> int | None:
    return None if value_ms is None else round(value_ms * NS_PER_MS)
