"""What workers say to each other directly, as the headers of messages on a peer connection.

Every connection begins with IntroducePeer, which names its purpose. A step link is held open from
a replica's lead to each of its members:

    lead                                  member
    OpenSteps                     --->
                                  <---    StepsOpened | StepsRefused
    CarryPlan + plan              --->                at each step, unanswered
    PeerAlive                     --->    PeerAlive   so that silence means something
    YieldStep                     --->                unanswered
    OpenTicket, CloseTicket       --->    TicketOpened, TicketClosed
    StoreToHost, LoadFromHost     --->    HostCopyEnded
                                  <---    MemberFailed

Other links carry one question at a time, each answered before the next, or the transfers
(`transfers.py`) that questions announce.

A copy of KV: its ticket is open from the offer until the end of the link that carried it. A block
is given to nobody else before every rank of the target has closed the ticket, so that nothing late
is ever written over a block that is in use again.

    source lead     target lead     target ranks    source ranks
         |---OfferKv---->|---OpenTicket->|
         |<--KvOffered---|<-TicketOpened-|
    for each batch:
         |---SendKv--------------------------------------->|
         |               |               |<-----StoreKv----|
         |               |               |------KvAwaited->|
         |               |               |<===KV transfer==|
         |<--KvSent----------------------------------------|
         |---CommitKv--->|
         |<--KvCommitted-|
    at the end, or when the link is lost:
         |---EndKv------>|--CloseTicket->|
         |<--KvEnded-----|<-TicketClosed-|

Nothing of it is lost alone: a connection delivers in order or ends, and with it all that it
carried. `replica_epoch` is that of the replica whose steps run or whose memory is written; who has
another one refuses.
"""

from enum import StrEnum
from typing import Annotated, Final, Literal

from pydantic import Field, StringConstraints

from libs.contracts.transfers import TicketId
from libs.contracts.wire import Codec, Message, SubjectToken

BLOCKS_PER_COPY_MAX: Final = 65_536
"""Blocks in one offer; who has more copies them in several rounds."""
BLOCKS_PER_BATCH_MAX: Final = 4096
"""Blocks in one SendKv or StoreKv."""
SLICES_PER_FETCH_MAX: Final = 4096
"""Slices in one FetchWeights."""
ROUTES_PER_RANK_MAX: Final = 256
"""Rectangles of KV that one rank sends: one for each rank of the target that it overlaps."""

KvTicketId = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.:-]{1,96}$")]
"""Names one copy of KV; chosen by the lead of the source, never used for another."""


class PeerRefusal(StrEnum):
    """Why a peer does not do what it is asked."""

    UNKNOWN_REPLICA = "unknown_replica"
    """It has no such replica open, or does so no longer; perhaps not yet."""
    STALE_EPOCH = "stale_epoch"
    """It has the replica open under another epoch."""
    UNKNOWN_TICKET = "unknown_ticket"
    """The copy was never offered, or has ended."""
    NOT_HELD = "not_held"
    """It does not hold the weights that are asked for."""
    PEER_LOST = "peer_lost"
    """Another peer that it needs for this is gone or silent."""
    FAILED = "failed"
    """It tried and could not."""


class PeerRefused(Message):
    """What was asked is not done, and nothing of it remains.

    Sent in the place of any other answer. Handled by who asked, which gives up.
    """

    type: Literal["peer_refused.v1"] = "peer_refused.v1"
    reason: PeerRefusal
    message: str = Field(default="", max_length=1024)


class ReplicaMessage(Message):
    """What is about one replica under one epoch; not sent by itself."""

    replica_id: SubjectToken
    replica_epoch: int = Field(ge=1)


class OpenSteps(ReplicaMessage):
    """First message on a step link: the lead's plans for this replica will come here.

    Sent by the lead. Handled by the member, which answers StepsOpened or StepsRefused. Another
    one on a new connection replaces the link before.
    """

    type: Literal["open_steps.v1"] = "open_steps.v1"
    worker_id: SubjectToken


class StepsOpened(Message):
    """The member takes plans on this link.

    Sent by the member. Handled by the lead, which awaits it for a bounded time.
    """

    type: Literal["steps_opened.v1"] = "steps_opened.v1"
    worker_id: SubjectToken


class StepsRefused(Message):
    """The member does not take these plans; the connection ends.

    Sent by the member in the place of StepsOpened. Handled by the lead, which tries again while the
    reason is `unknown_replica`: each worker is told separately to open the replica.
    """

    type: Literal["steps_refused.v1"] = "steps_refused.v1"
    reason: PeerRefusal
    message: str = Field(default="", max_length=1024)


class CarryPlan(Message):
    """The body is a StepPlan to be run after all plans before it.

    Sent by the lead to every member. Handled by the member's engine; the step itself is the answer.
    """

    type: Literal["carry_plan.v1"] = "carry_plan.v1"


class YieldStep(Message):
    """The step of this number shall end at its next safepoint, if it is not over.

    Sent by the lead to every member, behind the plan. Handled by the member's engine, at once and
    beside what it computes. Late: the step runs to its end.
    """

    type: Literal["yield_step.v1"] = "yield_step.v1"
    step_id: int = Field(ge=0, lt=2**63)


class StoreToHost(Message):
    """Asks for a copy of blocks to host memory: the body has pairs of block and slot.

    Sent by the lead to every member. Handled beside the steps; answered by HostCopyEnded.
    """

    type: Literal["store_to_host.v1"] = "store_to_host.v1"
    copy_id: KvTicketId


class LoadFromHost(Message):
    """Asks for a copy of blocks from host memory: the body has pairs of slot and block.

    Sent by the lead to every member. Handled beside the steps; answered by HostCopyEnded.
    """

    type: Literal["load_from_host.v1"] = "load_from_host.v1"
    copy_id: KvTicketId


class HostCopyEnded(Message):
    """Nothing of this copy goes on; the body has the slots whose content was found changed.

    Sent by the member; the lead awaits it of all.
    """

    type: Literal["host_copy_ended.v1"] = "host_copy_ended.v1"
    copy_id: KvTicketId
    failure: str = Field(default="", max_length=1024, description="empty: all was copied")


class PeerAlive(Message):
    """Nothing to say; `number` counts those of one link and is sent back as it came.

    Sent by the lead periodically, answered by the member. Missing for too long: the peer is lost.
    """

    type: Literal["peer_alive.v1"] = "peer_alive.v1"
    number: int = Field(ge=0, lt=2**63)


class OpenTicket(Message):
    """KV of this copy may be stored from now on.

    Sent by the lead of the target. Handled by its members, which answer TicketOpened.
    """

    type: Literal["open_ticket.v1"] = "open_ticket.v1"
    ticket_id: KvTicketId


class TicketOpened(Message):
    """The member stores KV of this copy. Sent by the member; the lead awaits it of all."""

    type: Literal["ticket_opened.v1"] = "ticket_opened.v1"
    ticket_id: KvTicketId


class CloseTicket(Message):
    """Nothing of this copy may be stored any more.

    Sent by the lead of the target before it gives blocks to others. Handled by its members, which
    answer TicketClosed once nothing of it is being stored. An unknown ticket is answered alike.
    """

    type: Literal["close_ticket.v1"] = "close_ticket.v1"
    ticket_id: KvTicketId


class TicketClosed(Message):
    """The member stores nothing of this copy. Sent by the member; the lead awaits it of all."""

    type: Literal["ticket_closed.v1"] = "ticket_closed.v1"
    ticket_id: KvTicketId


class MemberFailed(Message):
    """The member cannot go on with this replica.

    Sent by the member when its step failed. Handled by the lead, which takes the replica as broken.
    """

    type: Literal["member_failed.v1"] = "member_failed.v1"
    message: str = Field(default="", max_length=1024)


class OfferKv(ReplicaMessage):
    """Asks which of these blocks are wanted; the body has their hashes, each prefix first.

    Sent by a source's lead. Handled by the target's lead, which reserves blocks and answers
    KvOffered with pairs of hash and block, or PeerRefused. The end of the connection ends the copy.
    """

    type: Literal["offer_kv.v1"] = "offer_kv.v1"
    ticket_id: KvTicketId


class KvOffered(Message):
    """The body has pairs of a wanted hash and the block reserved for it, in the offer's order.

    Sent by the target's lead. Hashes that are left out are there already, or find no room.
    """

    type: Literal["kv_offered.v1"] = "kv_offered.v1"


class CommitKv(Message):
    """The blocks of the hashes in the body are stored on every rank.

    Sent by the source's lead on the link of the offer. Handled by the target's lead: sessions may
    use them from now on. Answered by KvCommitted.
    """

    type: Literal["commit_kv.v1"] = "commit_kv.v1"
    ticket_id: KvTicketId


class KvCommitted(Message):
    """The blocks can be used. Sent by the target's lead."""

    type: Literal["kv_committed.v1"] = "kv_committed.v1"


class EndKv(Message):
    """The copy is over; blocks that were reserved and not committed are free again.

    Sent by the source's lead. Handled by the target's lead, which answers KvEnded.
    """

    type: Literal["end_kv.v1"] = "end_kv.v1"
    ticket_id: KvTicketId


class KvEnded(Message):
    """Nothing of the copy is stored any more. Sent by the target's lead."""

    type: Literal["kv_ended.v1"] = "kv_ended.v1"


class RankRoute(Message):
    """The rectangle of KV that one rank of the source sends to one worker; not sent by itself."""

    worker_id: SubjectToken
    peer_address: str = Field(max_length=256)
    layer_start: int = Field(ge=0)
    layer_stop: int = Field(ge=1)
    head_start: int = Field(ge=0)
    head_stop: int = Field(ge=1)


class SendKv(Message):
    """Asks a rank to send its part of the blocks in the body, pairs of source and target block.

    Sent by a source's lead. Handled by each of its ranks, which answer KvSent or PeerRefused.
    """

    type: Literal["send_kv.v1"] = "send_kv.v1"
    ticket_id: KvTicketId
    batch: int = Field(ge=0, lt=2**32, description="counts the batches of one copy")
    source_rank: int = Field(ge=0, lt=2**32, description="of the worker that is asked")
    source_replica_id: SubjectToken
    source_replica_epoch: int = Field(ge=1)
    target_replica_id: SubjectToken
    target_replica_epoch: int = Field(ge=1)
    routes: tuple[RankRoute, ...] = Field(max_length=ROUTES_PER_RANK_MAX)


class KvSent(Message):
    """Every target has stored and verified what this rank had to send. Sent by that rank."""

    type: Literal["kv_sent.v1"] = "kv_sent.v1"
    bytes_moved: int = Field(ge=0, description="over the network")
    bytes_copied_here: int = Field(ge=0, description="the target was this worker itself")


class StoreKv(ReplicaMessage):
    """Announces a transfer of this rectangle of the target's blocks, which are in the body.

    Sent by a rank of the source. Handled by a rank of the target, which answers KvAwaited or
    PeerRefused. The transfer's last acknowledgement says that all of it lies in the blocks.
    """

    type: Literal["store_kv.v1"] = "store_kv.v1"
    ticket_id: KvTicketId
    transfer_id: TicketId
    blocks_per_piece: int = Field(ge=1, description="the last piece may have fewer")
    layer_start: int = Field(ge=0)
    layer_stop: int = Field(ge=1)
    head_start: int = Field(ge=0)
    head_stop: int = Field(ge=1)


class KvAwaited(Message):
    """The transfer that was announced may begin. Sent by the rank of the target."""

    type: Literal["kv_awaited.v1"] = "kv_awaited.v1"


class FetchWeights(Message):
    """Asks for the slices of weights in the body, as one transfer to `peer_address`.

    Sent by a loading worker. Handled by a worker that holds them: it sends the transfer, then
    answers WeightsSent or PeerRefused. Asked again after a cut, what has arrived is not sent again.
    """

    type: Literal["fetch_weights.v1"] = "fetch_weights.v1"
    transfer_id: TicketId
    replica_epoch: int = Field(ge=1, description="of the replica that is being loaded")
    peer_address: str = Field(max_length=256)
    piece_bytes_max: int = Field(ge=1, description="slices are split to this, if they can be")


class WeightsSent(Message):
    """Every slice was stored and verified. Sent by the holder."""

    type: Literal["weights_sent.v1"] = "weights_sent.v1"
    pieces_resent: int = Field(ge=0, description="they had arrived corrupted")


StepLinkMessage = (
    OpenSteps
    | StepsOpened
    | CarryPlan
    | YieldStep
    | StoreToHost
    | LoadFromHost
    | HostCopyEnded
    | PeerAlive
    | OpenTicket
    | TicketOpened
    | CloseTicket
    | TicketClosed
    | MemberFailed
    | StepsRefused
)
PeerQuestion = OfferKv | CommitKv | EndKv | SendKv | StoreKv | FetchWeights
PeerAnswer = KvOffered | KvCommitted | KvEnded | KvSent | KvAwaited | WeightsSent | PeerRefused

STEP_LINK: Codec[StepLinkMessage] = Codec(Annotated[StepLinkMessage, Field(discriminator="type")])
PEER_QUESTIONS: Codec[PeerQuestion] = Codec(Annotated[PeerQuestion, Field(discriminator="type")])
PEER_ANSWERS: Codec[PeerAnswer] = Codec(Annotated[PeerAnswer, Field(discriminator="type")])
