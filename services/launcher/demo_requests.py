"""What the demo asks: dozens of questions, half greedy and half seeded, over NATS and over HTTP."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from libs.kernel.rng import Rng

MAX_TOKENS: Final = 200
SEEDED_TEMPERATURE: Final = 0.8
ONE_IN_HTTP: Final = 3
"""Every third request goes over HTTP."""
QUESTIONS: Final = (
    "What does str.split do?",
    "What happens when a worker dies?",
    "Tell me about the json module.",
    "What does list.sort do?",
    "What is the Zen of Python?",
    "What does math.sqrt do?",
    "What is a dictionary?",
    "What does os.path.join do?",
    "How do I write a loop?",
    "What is the heapq module for?",
    "What does dict.get do?",
    "What is TideServe?",
    "What does str.strip do?",
    "Explain itertools.chain.",
    "What does datetime.timedelta do?",
    "What is NATS?",
)


class Protocol(StrEnum):
    """How a request reaches the fleet."""

    NATS = "nats"
    HTTP = "http"


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoRequest:
    """One request; asked twice, undisturbed and disturbed, it must get the same answer."""

    index: int
    protocol: Protocol
    question: str
    temperature: float
    seed: int
    arrival_ns: int
    """After the start of the load."""

    @property
    def kind(self) -> str:
        """How its tokens are chosen."""
        return "seeded" if self.temperature > 0 else "greedy"

    @property
    def messages(self) -> list[dict[str, str]]:
        """The conversation that is sent."""
        return [{"role": "user", "content": self.question}]


def demo_requests(count: int, *, seed: int, duration_ns: int) -> list[DemoRequest]:
    """Return requests that arrive by chance over the duration; same seed, same requests."""
    arrivals = Rng(seed).child("arrivals")
    instants = sorted(round(arrivals.random() * duration_ns) for _ in range(count))
    return [
        DemoRequest(
            index=index,
            protocol=Protocol.HTTP if index % ONE_IN_HTTP == ONE_IN_HTTP - 1 else Protocol.NATS,
            question=QUESTIONS[index % len(QUESTIONS)],
            # Pairs, so that both kinds meet both protocols.
            temperature=SEEDED_TEMPERATURE if index // 2 % 2 else 0.0,
            seed=1000 + index,
            arrival_ns=instant,
        )
        for index, instant in enumerate(instants)
    ]
