"""What one asks of the cloud that a launcher plays on one machine: nodes that come and go.

A node is a group of processes: its workers and its preemption watcher. Each request is answered,
on its reply subject, by CloudDone or CloudRefused. A lost request times out at the sender; a
doubled AddNode would add twice, so it carries an id that the launcher remembers.
"""

from typing import Annotated, Literal

from pydantic import Field

from libs.contracts.reports import Market
from libs.contracts.wire import Codec, Message, SubjectToken


class AddNode(Message):
    """Start one more node. Sent by people or a provisioner to `LOCAL_CLOUD`."""

    type: Literal["add_node.v1"] = "add_node.v1"
    operation_id: SubjectToken
    market: Market = Market.SPOT
    zone: SubjectToken | None = None


class PreemptNode(Message):
    """Give the node its notice, and kill all of it when the grace is over.

    Repeated for a node that is leaving already: the earlier end counts.
    """

    type: Literal["preempt_node.v1"] = "preempt_node.v1"
    operation_id: SubjectToken
    node_id: SubjectToken
    grace_ms: int = Field(default=30_000, ge=0, le=3_600_000)


class KillNode(Message):
    """Kill every process of the node at once, without notice."""

    type: Literal["kill_node.v1"] = "kill_node.v1"
    operation_id: SubjectToken
    node_id: SubjectToken


class CloudDone(Message):
    """The request was carried out, or is under way. Sent by the launcher."""

    type: Literal["cloud_done.v1"] = "cloud_done.v1"
    operation_id: SubjectToken
    node_id: SubjectToken


class CloudRefused(Message):
    """The request was not carried out; the message says why. Sent by the launcher."""

    type: Literal["cloud_refused.v1"] = "cloud_refused.v1"
    operation_id: str = ""
    message: str = Field(max_length=1024)


ToCloud = AddNode | PreemptNode | KillNode
FromCloud = CloudDone | CloudRefused

CLOUD_REQUESTS: Codec[ToCloud] = Codec(Annotated[ToCloud, Field(discriminator="type")])
CLOUD_ANSWERS: Codec[FromCloud] = Codec(Annotated[FromCloud, Field(discriminator="type")])
