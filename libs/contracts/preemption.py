"""Notices that a node will be taken away, and what one may ask of the watcher that gives them.

A notice has two ways to its receivers: over the bus to everybody, and over a Unix-domain socket
from the watcher to the workers of its own node, which therefore hear of it while the broker is
away. It is the same message on both, and a receiver takes it from whichever comes first.

Each notice is repeated every few seconds for as long as it holds, so that a lost one, a broker's
gap or a restarted watcher costs a delay and nothing else. Repeats are one notice: the same
(node_id, kind, notice_id). Every one carries the grace that is left at its sending; a receiver adds
that to its own clock on arrival, so that clocks which disagree do no harm. Others plan with a
deadline; the dying node alone enforces it.
"""

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field

from libs.contracts.wire import Codec, Message, SubjectToken

DETAIL_CHARACTERS_MAX = 500
"""A longer detail is cut by the watcher before it is sent; none of them is ever acted on."""

UnixNs = Annotated[int, Field(ge=0, lt=2**63)]
"""Nanoseconds since 1970."""

GraceNs = Annotated[int, Field(ge=0, lt=2**63)]
"""A remaining time in nanoseconds; 0 means now."""

Detail = Annotated[str, Field(max_length=DETAIL_CHARACTERS_MAX)]
"""What the cloud said, for people."""


class NoticeKind(StrEnum):
    """What will happen to the node.

    preemption: it ends at the deadline. rebalance: it is likely to be taken, nobody knows when.
    maintenance: it restarts, moves or ends for the operator's or the cloud's own reasons.
    """

    PREEMPTION = "preemption"
    REBALANCE = "rebalance"
    MAINTENANCE = "maintenance"


class PreemptionNotice(Message):
    """The node will be taken away.

    Sent by a watcher to `notice(node_id)`, and over the node's socket to its workers: at once, and
    then every few seconds until the node ends or the notice is withdrawn. Handled by the workers of
    the node, which get out of the way by themselves, and by whoever plans. Lost: the next one
    replaces it. Doubled: one notice, by (node_id, kind, notice_id); the newest grace counts. Late:
    the grace is too long by the delay, which the watcher's safety margin allows for.
    """

    type: Literal["preemption_notice.v1"] = "preemption_notice.v1"
    notice_id: SubjectToken
    node_id: SubjectToken
    kind: NoticeKind
    source: SubjectToken = Field(description="who told the watcher, such as aws or manual")
    deadline_at_unix_ns: UnixNs | None = Field(
        default=None,
        description="when the node ends at the latest, as the source says; none: it does not say",
    )
    observed_at_unix_ns: UnixNs = Field(description="when the watcher first saw it, by its clock")
    grace_ns: GraceNs | None = Field(
        default=None,
        description="what is left at the sending of this message, safety margin taken off: the "
        "least of what the source says and what is configured; 0: no time at all; none: unknown",
    )
    detail: Detail = ""


class NoticeWithdrawn(Message):
    """The node stays after all; forget that notice.

    Sent by a watcher to `notice(node_id)` and over the node's socket, when the source no longer
    gives the notice; repeated for a while. Handled as PreemptionNotice is. Lost: repeated. Doubled,
    or for a notice that was never heard of: ignored. A notice given again later counts again.
    """

    type: Literal["notice_withdrawn.v1"] = "notice_withdrawn.v1"
    notice_id: SubjectToken
    node_id: SubjectToken
    kind: NoticeKind
    source: SubjectToken
    detail: Detail = ""


class RaiseNotice(Message):
    """Asks a watcher to give notice as if the cloud had: for tests, drills and planned work.

    Sent by a person's tool, with a reply subject, to `notice_request(node_id)`. Handled by the
    watcher of that node; without one the broker answers at once that nobody listens. Lost: asked
    again. Doubled: answered again; the same notice_id is the same notice, and its grace runs from
    the first.
    """

    type: Literal["raise_notice.v1"] = "raise_notice.v1"
    notice_id: SubjectToken
    node_id: SubjectToken
    kind: NoticeKind = NoticeKind.PREEMPTION
    grace_ns: GraceNs | None = Field(default=None, description="from now on; none: unknown")
    detail: Detail = ""


class WithdrawNotice(Message):
    """Asks a watcher to withdraw a notice that RaiseNotice gave.

    Sent, handled and answered as RaiseNotice is. A notice of another source cannot be withdrawn
    this way: the cloud does not ask us.
    """

    type: Literal["withdraw_notice.v1"] = "withdraw_notice.v1"
    notice_id: SubjectToken
    node_id: SubjectToken


class ConfirmEvacuation(Message):
    """Nothing of worth is left on the node; the cloud need not wait any longer.

    Sent by the owner of the evacuation, with a reply subject, to `notice_request(node_id)`. The
    watcher tells the cloud where the cloud wants to know (Azure then ends the node early), and
    answers once it has; elsewhere it answers at once. Lost: asked again, or the cloud waits for its
    deadline. Doubled: confirmed again, which is harmless.
    """

    type: Literal["confirm_evacuation.v1"] = "confirm_evacuation.v1"
    notice_id: SubjectToken
    node_id: SubjectToken


class NoticeRequestAccepted(Message):
    """What was asked for is done.

    Sent by a watcher to the reply subject. Lost: asked again.
    """

    type: Literal["notice_request_accepted.v1"] = "notice_request_accepted.v1"
    notice_id: SubjectToken
    node_id: SubjectToken


class NoticeRejectReason(StrEnum):
    """Why a watcher does not do what it was asked."""

    WRONG_NODE = "wrong_node"
    UNKNOWN_NOTICE = "unknown_notice"
    OTHER_SOURCE = "other_source"
    NOT_ALLOWED = "not_allowed"
    FULL = "full"
    UNAVAILABLE = "unavailable"
    INVALID = "invalid"


class NoticeRequestRejected(Message):
    """What was asked for was not done.

    Sent by a watcher to the reply subject. Lost: asked again.
    """

    type: Literal["notice_request_rejected.v1"] = "notice_request_rejected.v1"
    reason: NoticeRejectReason
    message: str


Notice = PreemptionNotice | NoticeWithdrawn
NoticeRequest = RaiseNotice | WithdrawNotice | ConfirmEvacuation
NoticeAnswer = NoticeRequestAccepted | NoticeRequestRejected

NOTICES: Codec[Notice] = Codec(Annotated[Notice, Field(discriminator="type")])
NOTICE_REQUESTS: Codec[NoticeRequest] = Codec(Annotated[NoticeRequest, Field(discriminator="type")])
NOTICE_ANSWERS: Codec[NoticeAnswer] = Codec(Annotated[NoticeAnswer, Field(discriminator="type")])
