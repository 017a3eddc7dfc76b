"""How a request can fail, as a caller sees it. `Unavailable` of the kernel is the fourth way."""

from libs.contracts.online import FailReason, RejectReason


class RequestRefused(Exception):
    """The request was not accepted and nothing was done."""

    def __init__(
        self,
        message: str,
        *,
        reason: RejectReason,
        parameter: str | None = None,
        retry_after_ns: int | None = None,
    ) -> None:
        super().__init__(message)
        self.reason = reason
        """Why, from a closed list."""
        self.parameter = parameter
        """The field at fault, where there is one."""
        self.retry_after_ns = retry_after_ns
        """When the same request may succeed; None means never."""


class RequestFailedError(Exception):
    """The request was accepted and ended without a full answer; tokens already read stay valid."""

    def __init__(self, message: str, *, reason: FailReason) -> None:
        super().__init__(message)
        self.reason = reason
        """Why, from a closed list."""
