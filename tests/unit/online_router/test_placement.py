"""Which worker has room and which is chosen, for online sessions and those that give way."""

from libs.contracts.reports import WorkerReport
from libs.kernel.units import NS_PER_MS
from services.online_router.placement import (
    Wanted,
    WorkerView,
    choose_worker,
    has_room,
    view_of,
)

SOON_NS = 500 * NS_PER_MS


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
    view = choose_worker(views, wanted=wanted, soon_ns=SOON_NS)
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


def test_an_offline_session_goes_where_it_has_blocks_beside_the_reserve() -> None:
    full = a_view("a", blocks_free=30, blocks_reserved_for_online=25)
    roomy = a_view("b", blocks_free=30, sessions_running=1)
    assert chosen(full, roomy, is_offline=True) == "b"
    assert chosen(full, roomy, is_offline=True, tokens_max=80) == "a"
    assert chosen(full, roomy, is_offline=False) == "a"


def test_what_was_sent_since_the_report_counts_for_its_own_kind() -> None:
    first, second = a_view("a"), a_view("b")
    first.note_sent(tokens=500, is_offline=True)
    assert chosen(first, second, is_offline=True) == "b"
    assert chosen(first, second, is_offline=False) == "a"
    first.note_sent(tokens=100, is_offline=False)
    assert chosen(first, second, is_offline=False) == "b"


def is_roomy(view: WorkerView, *, is_offline: bool = False) -> bool:
    return has_room(view, is_offline=is_offline, soon_ns=SOON_NS)


def sessions_taken(view: WorkerView, *, tokens: int = 10, limit: int = 1000) -> int:
    """Send sessions until there is no room; return how many that took."""
    sent = 0
    while is_roomy(view) and sent < limit:
        view.note_sent(tokens=tokens, is_offline=False)
        sent += 1
    return sent


def test_a_worker_gets_what_its_batch_takes_and_a_few_that_wait() -> None:
    assert sessions_taken(a_view("a", sessions_running_max=32)) == 32
    assert sessions_taken(a_view("a", sessions_running_max=32, sessions_running=32)) == 9
    assert sessions_taken(a_view("a", sessions_running_max=8, sessions_running=8)) == 3


def test_a_worker_gets_no_more_prompts_than_it_computes_soon() -> None:
    slow = {"sessions_running_max": 64, "prefill_tokens_per_s": 2000}
    assert sessions_taken(a_view("a", **slow), tokens=100) == 10
    assert (
        sessions_taken(a_view("a", **slow, tokens_waiting=900, sessions_waiting=9), tokens=100) == 1
    )
    assert not is_roomy(a_view("a", **slow, tokens_waiting=1000, sessions_waiting=10))


def test_a_worker_without_free_blocks_gets_only_the_few_that_wait() -> None:
    full = a_view("a", sessions_running_max=32, sessions_running=20, blocks_free=0)
    assert sessions_taken(full) == 9


def test_blocks_of_offline_work_are_room_for_online_work_alone() -> None:
    harvesting = {
        "sessions_running_max": 8,
        "sessions_running": 8,
        "offline_running": 8,
        "sessions_waiting": 4,
        "offline_waiting": 4,
        "blocks_free": 0,
        "blocks_offline": 90,
    }
    assert is_roomy(a_view("a", **harvesting))
    assert not is_roomy(a_view("a", **harvesting), is_offline=True)


def test_who_ends_makes_room_before_the_next_report_says_so() -> None:
    full = a_view("a", sessions_running_max=8, sessions_running=8, sessions_waiting=3)
    assert not is_roomy(full)
    full.online.sessions_left += 1
    assert is_roomy(full)


def test_what_a_report_does_not_say_bounds_nothing() -> None:
    assert sessions_taken(a_view("a", blocks_free=10_000), limit=500) == 500


def test_without_room_anywhere_nobody_is_chosen() -> None:
    full = {"sessions_running_max": 8, "sessions_running": 8, "sessions_waiting": 3}
    wanted = Wanted(prompt_tokens=10, prompt_hashes=(), tokens_max=20, is_offline=False)
    views = [a_view("a", **full), a_view("b", **full)]
    assert choose_worker(views, wanted=wanted, soon_ns=SOON_NS) is None
    views.append(a_view("c", sessions_running=7, sessions_running_max=8, tokens_waiting=900))
    found = choose_worker(views, wanted=wanted, soon_ns=SOON_NS)
    assert found is not None
    assert found.report.worker_id == "c"
