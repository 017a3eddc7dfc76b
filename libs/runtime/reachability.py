"""Whether a silent process still listens: the broker knows, long before reports are missed."""

from typing import Final

from libs.contracts import subjects
from libs.contracts.sessions import AcknowledgeTokens
from libs.contracts.wire import encode
from libs.kernel.errors import Unavailable
from libs.kernel.units import NS_PER_MS
from libs.runtime.bus import CoreBus, NoResponders

ANSWER_NS: Final = 100 * NS_PER_MS
"""A worker does not answer; that nobody listens is said within a round trip."""


async def is_worker_reachable(bus: CoreBus, worker_id: str, *, asker_id: str) -> bool:
    """Return False exactly if the broker says that nobody listens on the worker's subject.

    A process that was killed is gone there as soon as its connection closes; one that is frozen, or
    cut off from the broker, still counts as reachable. Says True while the broker is away.
    """
    nothing = AcknowledgeTokens(router_id=asker_id, receipts=())
    try:
        await bus.request(subjects.worker_control(worker_id), encode(nothing), timeout_ns=ANSWER_NS)
    except NoResponders:
        return False
    except Unavailable:
        return True
    return True
