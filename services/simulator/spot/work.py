"""Requests in the simulated fleet, and what a replica holds of them."""

from dataclasses import dataclass


@dataclass(slots=True, kw_only=True)
class SimRequest:
    """One request, from arrival to end."""

    request_id: str
    arrived_at_ns: int
    prompt_tokens: int
    output_tokens: int
    tokens_done: int = 0
    """Generated, and kept."""
    first_token_at_ns: int | None = None
    finished_at_ns: int | None = None
    tokens_recomputed: int = 0
    """Prompt and answer tokens whose KV was lost and computed again."""

    @property
    def latency_ns(self) -> int | None:
        """From arrival to the last token; None while it is not over."""
        return None if self.finished_at_ns is None else self.finished_at_ns - self.arrived_at_ns

    @property
    def kv_tokens(self) -> int:
        """Tokens whose KV is needed to go on."""
        return self.prompt_tokens + self.tokens_done


@dataclass(slots=True, kw_only=True)
class Work:
    """Requests that one replica computes together; of the continuous engine always one."""

    requests: list[SimRequest]
    tokens_done: int = 0
    """Generated of each."""
    kv_tokens: int = 0
    """Whose KV lies at the replica, of all requests together; 0: to be computed from the prompt."""

    @property
    def name(self) -> str:
        """The first request's id."""
        return self.requests[0].request_id
