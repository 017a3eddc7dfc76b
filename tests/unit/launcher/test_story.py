"""A story is every log line that names an entity or was caused by it, in the order of time."""

import json
from pathlib import Path

from services.launcher.story import LINE_BYTES_MAX, read_logs, story_of


def a_line(second: int, event: str, **fields: object) -> str:
    timestamp = f"2026-01-01T00:00:{second:02}.000000Z"
    return json.dumps({"timestamp": timestamp, "event": event, "service": "s", **fields})


def written(folder: Path, name: str, *lines: str) -> Path:
    path = folder / name
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_lines_of_several_processes_are_told_in_the_order_of_time(tmp_path: Path) -> None:
    one = written(tmp_path, "a.log", a_line(3, "ended", request_id="r1"))
    two = written(tmp_path, "b.log", a_line(1, "opened", request_id="r1"), a_line(2, "other"))
    told = story_of("r1", read_logs([one, two]))
    assert [line.event for line in told] == ["opened", "ended"]


def test_what_was_caused_by_the_entity_and_lists_that_hold_it_belong_to_its_story(
    tmp_path: Path,
) -> None:
    log = written(
        tmp_path,
        "a.log",
        a_line(1, "noticed", cause_id="node-1"),
        a_line(2, "placed", worker_ids=["w1", "node-1"]),
        a_line(3, "unrelated", worker_ids=["node-11"]),
    )
    assert [line.event for line in story_of("node-1", read_logs([log]))] == ["noticed", "placed"]


def test_what_is_no_line_of_ours_is_passed_over(tmp_path: Path) -> None:
    log = written(
        tmp_path,
        "a.log",
        "a library speaks",
        '["r1"]',
        '{"event": "without a time", "request_id": "r1"}',
        a_line(1, "x" * LINE_BYTES_MAX, request_id="r1"),
        a_line(2, "opened", request_id="r1"),
    )
    assert [line.event for line in story_of("r1", read_logs([log]))] == ["opened"]
