"""Which worker is chosen, for online sessions and for those that give way to them."""

from libs.contracts.reports import WorkerReport
from services.online_router.placement import Wanted, WorkerView, choose_worker, view_of


def a_view(worker_id: str, **changes: object) -> WorkerView:
    fields: dict[str, object] = {
        "worker_id": worker_id,
        "beat": 0,
        "alias": "tide",
        "process_id": 1,
        "context_tokens_max": 1024,
        "vocabulary_size": 1000,
        "block_tokens": 16,
        "blocks_total": 100,
        "blocks_free": 100,
        "sessions_running": 0,
        "sessions_waiting": 0,
        "tokens_waiting": 0,
        "tokens_generated": 0,
        "steps": 0,
        "step_ms_recent": 1.0,
    }
    return view_of(WorkerReport.model_validate(fields | changes))


def chosen(*views: WorkerView, is_offline: bool, tokens_max: int = 200) -> str:
    wanted = Wanted(
        prompt_tokens=100, prompt_hashes=(), tokens_max=tokens_max, is_offline=is_offline
    )
    view = choose_worker(views, wanted=wanted)
    assert view is not None
    return view.report.worker_id


BUSY_OFFLINE = {
    "sessions_running": 20,
    "offline_running": 20,
    "sessions_waiting": 30,
    "offline_waiting": 30,
    "tokens_waiting": 9_000,
    "offline_tokens_waiting": 9_000,
    "blocks_free": 0,
}


def test_an_online_session_goes_past_any_offline_work() -> None:
    busy, light = a_view("a", **BUSY_OFFLINE), a_view("b", sessions_running=1)
    assert chosen(busy, light, is_offline=False) == "a"
    assert chosen(busy, light, is_offline=True) == "b"


def test_an_offline_session_goes_where_online_work_leaves_most() -> None:
    busy = a_view("a", sessions_running=10)
    idle = a_view("b", sessions_running=2, offline_running=2)
    assert chosen(busy, idle, is_offline=True) == "b"


def test_an_offline_session_goes_where_it_has_room_beside_the_reserve() -> None:
    full = a_view("a", blocks_free=30, blocks_reserved_for_online=25)
    roomy = a_view("b", blocks_free=30, sessions_running=1)
    assert chosen(full, roomy, is_offline=True) == "b"
    assert chosen(full, roomy, is_offline=True, tokens_max=80) == "a"
    assert chosen(full, roomy, is_offline=False) == "a"


def test_what_was_sent_since_the_report_counts_for_its_own_kind() -> None:
    first, second = a_view("a"), a_view("b")
    first.offline_tokens_sent_since_report = 500
    assert chosen(first, second, is_offline=True) == "b"
    assert chosen(first, second, is_offline=False) == "a"
    first.tokens_sent_since_report = 100
    assert chosen(first, second, is_offline=False) == "b"


def test_sessions_placed_here_count_before_a_report_shows_them() -> None:
    first, second = a_view("a"), a_view("b")
    first.sessions_placed = first.sessions_placed_offline = 5
    assert chosen(first, second, is_offline=True) == "b"
    assert chosen(first, second, is_offline=False) == "a"
