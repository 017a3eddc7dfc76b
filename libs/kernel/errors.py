"""The four families of error, told apart by whose fault it is.

Operating errors are data and programmer errors crash: inside a core only InvariantViolation is
raised; everything else reaches it as an event.
"""


class InvariantViolation(AssertionError):
    """Our own bug: the process logs the story, exits 70 and is restarted."""


class ContractViolation(Exception):
    """A peer sent a wrong message: refuse it, count it, never crash."""


class Unavailable(Exception):
    """The world failed for now (network, broker, device); carries when to try again."""

    def __init__(self, message: str, *, retry_after_ns: int) -> None:
        super().__init__(message)
        self.retry_after_ns = retry_after_ns


class ConfigError(Exception):
    """The operator's mistake: one line that names the field or file; the process exits 64."""


EXIT_INVARIANT_VIOLATION = 70
EXIT_CONFIG_ERROR = 64
