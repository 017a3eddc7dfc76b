"""Every subject, stream and bucket name, built here and nowhere else.

Form: `tide.v1.<family>.<name>[.<entity>]`; an entity is one token of `[a-z0-9_-]+`, so a model is
addressed by its alias: a dot in a name would split the subject.
"""

import re
from typing import Final

ROOT: Final = "tide.v1"
_TOKEN = re.compile(r"^[A-Za-z0-9_-]{1,64}$")

JOURNAL_STREAM: Final = "TIDE_JOURNAL"
CLAIM_BUCKET: Final = "tide_claims"
PLACEMENT_BUCKET: Final = "tide_placements"
"""Committed placements, one key per alias; each names the planner that leads."""
HANDOVER_BUCKET: Final = "tide_handovers"
"""Hand-overs under way, and who owns each."""
ROUTER_QUEUE_GROUP: Final = "online-router"
OFFLINE_QUEUE_GROUP: Final = "offline-queue"
FILE_BUCKET: Final = "tide_files"
"""FileRecords, by file id."""
BATCH_BUCKET: Final = "tide_batches"
"""BatchRecords, by batch id."""
BATCH_CLAIM_BUCKET: Final = "tide_batch_claims"
"""The SubmitBatch that a caller's request was first turned into, so that its repeat is the same."""
JOB_STREAM: Final = "TIDE_JOBS"
"""Offline work that is accepted and not ended: jobs, and parts of batches."""
RESULT_STREAM: Final = "TIDE_RESULTS"
"""How offline work ended."""


def _token(value: str) -> str:
    if not _TOKEN.match(value):
        raise ValueError(f"not a subject token: {value!r}")
    return value


def alias_of(name: str) -> str:
    """Turn a model's name into its alias: lower case, other characters than `[a-z0-9_-]` to `-`."""
    alias = re.sub(r"[^a-z0-9_-]+", "-", name.lower()).strip("-")[:64]
    return alias or "model"


def online(alias: str) -> str:
    """Where a client publishes SubmitRequest, with a reply subject."""
    return f"{ROOT}.online.{_token(alias)}"


ONLINE_ALL: Final = f"{ROOT}.online.*"


def offline(alias: str) -> str:
    """Where anybody publishes SubmitJob; JOB_STREAM captures it and answers."""
    return f"{ROOT}.offline.job.{_token(alias)}"


OFFLINE_ALL: Final = f"{ROOT}.offline.job.*"


def batch_part(batch_id: str) -> str:
    """Where the queue puts the parts of a batch, to be leased by any queue."""
    return f"{ROOT}.offline.part.{_token(batch_id)}"


BATCH_PARTS_ALL: Final = f"{ROOT}.offline.part.*"


def batch_task(batch_id: str) -> str:
    """Where a queue asks that a batch be looked at: validated, or finalised."""
    return f"{ROOT}.offline.task.{_token(batch_id)}"


BATCH_TASKS_ALL: Final = f"{ROOT}.offline.task.*"


def offline_result(alias: str, request_id: str) -> str:
    """Where the queue publishes the JobEnded of one job; RESULT_STREAM captures it."""
    return f"{ROOT}.offline.result.{_token(alias)}.{_token(request_id)}"


OFFLINE_RESULTS_ALL: Final = f"{ROOT}.offline.result.*.*"


def batch_line(batch_id: str, part: int, outcome: str) -> str:
    """Where the queue stores how a line of a batch ended; RESULT_STREAM captures it.

    Outcomes are `completed` and `failed`, so that the broker counts them for us.
    """
    return f"{ROOT}.offline.line.{_token(batch_id)}.{part}.{_token(outcome)}"


def batch_lines(batch_id: str, part: int | None = None) -> str:
    """All ended lines of a batch, or those of one part."""
    return f"{ROOT}.offline.line.{_token(batch_id)}.{'*' if part is None else part}.*"


BATCH_LINES_ALL: Final = f"{ROOT}.offline.line.*.*.*"


BATCH_CONTROL: Final = f"{ROOT}.offline.control"
"""Where questions about batches go, such as SubmitBatch; one queue of the group answers."""


def text(alias: str) -> str:
    """Where a client sends TokenizeText and DetokenizeIds; one router of the group answers."""
    return f"{ROOT}.text.{_token(alias)}"


TEXT_ALL: Final = f"{ROOT}.text.*"


def cancel(request_id: str) -> str:
    """Where a client publishes CancelRequest; every router listens, the owner acts."""
    return f"{ROOT}.cancel.{_token(request_id)}"


CANCEL_ALL: Final = f"{ROOT}.cancel.*"


def router_submissions(router_id: str, alias: str) -> str:
    """Where another router forwards a repeated submission that this one owns."""
    return f"{ROOT}.router.submissions.{_token(router_id)}.{_token(alias)}"


def router_submissions_all(router_id: str) -> str:
    """All submissions forwarded to this router."""
    return f"{ROOT}.router.submissions.{_token(router_id)}.*"


def router_ping(router_id: str) -> str:
    """Where another router asks, with an empty message, whether anybody listens."""
    return f"{ROOT}.router.ping.{_token(router_id)}"


def router_unreachable(router_id: str, peer_id: str) -> str:
    """Reply subject of what this router sends a peer: the broker answers if nobody listens."""
    return f"{ROOT}.router.unreachable.{_token(router_id)}.{_token(peer_id)}"


def router_unreachable_all(router_id: str) -> str:
    """All such answers of the broker to this router."""
    return f"{ROOT}.router.unreachable.{_token(router_id)}.*"


def last_token(subject: str) -> str:
    """Return the entity at the end of a subject."""
    return subject.rpartition(".")[2]


def router_tokens(router_id: str) -> str:
    """Where workers send this router its TokenStep messages."""
    return f"{ROOT}.router.tokens.{_token(router_id)}"


def router_control(router_id: str) -> str:
    """Where workers send this router their answers about sessions."""
    return f"{ROOT}.router.control.{_token(router_id)}"


def worker_control(worker_id: str) -> str:
    """Where routers send a worker StartSession, AcknowledgeTokens and EndSession."""
    return f"{ROOT}.worker.control.{_token(worker_id)}"


def worker_shape(worker_id: str) -> str:
    """Where the migrator sends a worker the commands of a hand-over."""
    return f"{ROOT}.worker.shape.{_token(worker_id)}"


def migrator_control(migrator_id: str) -> str:
    """Where workers answer the migrator."""
    return f"{ROOT}.migrator.control.{_token(migrator_id)}"


def placement(alias: str) -> str:
    """Where the leading planner announces each placement that it has committed."""
    return f"{ROOT}.placement.{_token(alias)}"


PLACEMENT_ALL: Final = f"{ROOT}.placement.*"


def planner_control(alias: str) -> str:
    """Where the leading planner is asked to pin a shape."""
    return f"{ROOT}.planner.control.{_token(alias)}"


def placement_key(alias: str) -> str:
    """Key of the committed placement in PLACEMENT_BUCKET."""
    return f"placement.{_token(alias)}"


def handover_key(alias: str) -> str:
    """Key of the hand-over under way in HANDOVER_BUCKET."""
    return f"handover.{_token(alias)}"


def capacity_wanted(alias: str) -> str:
    """Where the leading planner says how many nodes it would like."""
    return f"{ROOT}.capacity.{_token(alias)}"


LOCAL_CLOUD: Final = f"{ROOT}.cloud.local"
"""Where the launcher of a fleet on one machine is asked to add, preempt or kill a node."""

CAPACITY_ALL: Final = f"{ROOT}.capacity.*"


def worker_report(worker_id: str) -> str:
    """Where a worker publishes its WorkerReport."""
    return f"{ROOT}.report.worker.{_token(worker_id)}"


def router_report(router_id: str) -> str:
    """Where a router publishes its RouterReport, and hears its own echo."""
    return f"{ROOT}.report.router.{_token(router_id)}"


def planner_report(planner_id: str) -> str:
    """Where a planner publishes its PlannerReport, and hears its own echo."""
    return f"{ROOT}.report.planner.{_token(planner_id)}"


def migrator_report(migrator_id: str) -> str:
    """Where a migrator publishes its MigratorReport."""
    return f"{ROOT}.report.migrator.{_token(migrator_id)}"


def gateway_report(gateway_id: str) -> str:
    """Where a gateway publishes its GatewayReport."""
    return f"{ROOT}.report.gateway.{_token(gateway_id)}"


def offline_queue_report(queue_id: str) -> str:
    """Where an offline queue publishes its OfflineQueueReport, and hears its own echo."""
    return f"{ROOT}.report.offline_queue.{_token(queue_id)}"


WORKER_REPORTS: Final = f"{ROOT}.report.worker.*"
ROUTER_REPORTS: Final = f"{ROOT}.report.router.*"
PLANNER_REPORTS: Final = f"{ROOT}.report.planner.*"
MIGRATOR_REPORTS: Final = f"{ROOT}.report.migrator.*"
OFFLINE_QUEUE_REPORTS: Final = f"{ROOT}.report.offline_queue.*"
GATEWAY_REPORTS: Final = f"{ROOT}.report.gateway.*"
ALL_REPORTS: Final = (
    WORKER_REPORTS,
    ROUTER_REPORTS,
    PLANNER_REPORTS,
    MIGRATOR_REPORTS,
    OFFLINE_QUEUE_REPORTS,
    GATEWAY_REPORTS,
)


def notice(node_id: str) -> str:
    """Where a watcher publishes PreemptionNotice and NoticeWithdrawn about this node."""
    return f"{ROOT}.notice.{_token(node_id)}"


NOTICES_ALL: Final = f"{ROOT}.notice.*"


def notice_request(node_id: str) -> str:
    """Where the watcher of this node takes RaiseNotice, WithdrawNotice and ConfirmEvacuation."""
    return f"{ROOT}.notice.request.{_token(node_id)}"


def journal(journal_id: str) -> str:
    """The JetStream subject of one router's token journal."""
    return f"{ROOT}.journal.{_token(journal_id)}"


JOURNAL_ALL: Final = f"{ROOT}.journal.*"
