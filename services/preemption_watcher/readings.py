"""What a source says, in one form for all clouds. Pure."""

import hashlib
import re
from dataclasses import dataclass

from libs.contracts.preemption import DETAIL_CHARACTERS_MAX, NoticeKind
from libs.kernel.errors import ContractViolation

DIGEST_CHARACTERS = 16
INSTANT_UNIX_NS_MAX = 2**63 - 1
_TOKEN = re.compile(r"[a-z0-9_-]{1,64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """One notice as its source gives it now.

    Raises: ContractViolation for an id or an instant that no message could carry.
    """

    notice_id: str
    """The same each time the source gives this notice, and a subject token."""
    kind: NoticeKind
    deadline_at_unix_ns: int | None = None
    """When the node ends, where the source says so."""
    grace_ns: int | None = None
    """What such a notice leaves from its first sight on, where the source names no instant."""
    node_id: str | None = None
    """The node it is about; none: the watcher's own."""
    detail: str = ""

    def __post_init__(self) -> None:
        for token in (self.notice_id, self.node_id):
            if token is not None and not _TOKEN.fullmatch(token):
                raise ContractViolation(f"not an id: {token[:80]!r}")
        instant = self.deadline_at_unix_ns
        if instant is not None and not 0 <= instant <= INSTANT_UNIX_NS_MAX:
            raise ContractViolation(f"not an instant: {instant}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """What one poll of a source brought."""

    readings: tuple[Reading, ...] = ()
    is_whole: bool = True
    """Whether these are all the notices there are: then one that is missing is withdrawn. The
    answer of a source that tells each notice once is never whole."""
    unreadable: tuple[str, ...] = ()
    """Parts that could not be understood, each by its reason; what could be stands in readings."""


def notice_id_of(source: str, *parts: str) -> str:
    """Return the id of a notice for which the cloud has none: a digest of what tells it apart."""
    digest = hashlib.sha256("\0".join(parts).encode()).hexdigest()
    return f"{source}-{digest[:DIGEST_CHARACTERS]}"


def detail_of(text: str) -> str:
    """Return the text on one line, cut to what a message may carry."""
    return " ".join(text.split())[:DETAIL_CHARACTERS_MAX]
