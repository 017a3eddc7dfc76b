"""What a co-serving run sends to its worker: requests, and how each of them starts."""

from dataclasses import dataclass
from typing import Final

from libs.contracts.online import SamplingParameters
from libs.contracts.sessions import SessionSpec, StartSession

ROUTER_ID: Final = "router"
ONLINE_PRIORITY: Final = 0
OFFLINE_PRIORITY: Final = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class CoserveRequest:
    """One request; online ones have an arrival."""

    request_id: str
    prompt: tuple[int, ...]
    output_tokens: int
    arrival_ns: int = 0
    """From the beginning of what is measured."""

    def start(self, *, alias: str, priority: int) -> StartSession:
        """Return the message that starts it; it then has as many tokens as it says."""
        spec = SessionSpec(
            request_id=self.request_id,
            alias=alias,
            prompt_token_ids=self.prompt,
            max_tokens=self.output_tokens,
            sampling=SamplingParameters(temperature=0.0),
            ignore_eos=True,
            priority=priority,
        )
        return StartSession(router_id=ROUTER_ID, session_epoch=1, spec=spec)
