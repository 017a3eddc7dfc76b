"""`tideserve batch` against a gateway: what it prints, writes and returns."""

import asyncio
import json
from pathlib import Path

import pytest

from libs.contracts.batches import BatchStatus
from services.launcher.main import run
from tests.scripted_queue import Line, QueueScript

ENDPOINT = "/v1/completions"


@pytest.fixture
def lines(tmp_path: Path) -> Path:
    file = tmp_path / "lines.jsonl"
    rows = [
        {"custom_id": f"c{n}", "method": "POST", "url": ENDPOINT, "body": {"number": n}}
        for n in range(4)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def answered(body: Line) -> Line:
    return {"seen": body["number"]}


def answered_but_one(body: Line) -> Line | None:
    return None if body["number"] == 1 else {"seen": body["number"]}


class Command:
    """Runs `tideserve batch` on one gateway."""

    def __init__(self, stack, capsys: pytest.CaptureFixture[str]) -> None:
        self._url = stack.gateway.http_url
        self._capsys = capsys

    async def __call__(self, *arguments: str) -> tuple[int, str]:
        """Return the exit code, and what was printed: results, or the error where it failed."""
        command = ["batch", *arguments, "--url", self._url]
        code = await asyncio.to_thread(run, command)
        printed = self._capsys.readouterr()
        return code, printed.out or printed.err

    async def json(self, *arguments: str) -> Line:
        code, printed = await self(*arguments, "--json")
        assert code == 0, printed
        result: Line = json.loads(printed.splitlines()[-1])
        return result


async def test_a_file_is_submitted_waited_for_and_its_results_written(
    a_stack, lines, tmp_path, capsys
) -> None:
    async with a_stack(queue=QueueScript(answer=answered)) as stack:
        command = Command(stack, capsys)
        batch = await command.json("submit", str(lines), "--metadata", "run=1", "--window", "2h")
        assert (batch["endpoint"], batch["metadata"]) == (ENDPOINT, {"run": "1"})
        assert batch["completion_window"] == "2h"
        assert (await command.json("wait", batch["id"]))["status"] == "completed"
        written = await command.json("results", batch["id"], "--into", str(tmp_path / "out"))
        rows = [json.loads(row) for row in Path(written["output"]).read_text().splitlines()]
        assert [row["custom_id"] for row in rows] == ["c0", "c1", "c2", "c3"]
        assert written["errors"] is None
        assert [path.name for path in (tmp_path / "out").iterdir()] == [
            f"{batch['id']}.output.jsonl"
        ]


async def test_a_batch_with_a_failed_line_is_no_success(a_stack, lines, tmp_path, capsys) -> None:
    async with a_stack(queue=QueueScript(answer=answered_but_one)) as stack:
        command = Command(stack, capsys)
        code, printed = await command("submit", str(lines), "--wait", "--json")
        assert code == 1
        batch = json.loads(printed.splitlines()[-1])
        code, printed = await command("results", batch["id"], "--into", str(tmp_path))
        assert code == 0
        errors = tmp_path / f"{batch['id']}.errors.jsonl"
        assert json.loads(errors.read_text())["custom_id"] == "c1"


async def test_waiting_goes_on_until_the_batch_is_final(a_stack, lines, capsys) -> None:
    async with a_stack(queue=QueueScript()) as stack:
        command = Command(stack, capsys)
        batch = await command.json("submit", str(lines))
        waiting = asyncio.create_task(command("wait", batch["id"]))
        await asyncio.sleep(0.3)
        assert not waiting.done()
        await stack.queue.change(batch["id"], status=BatchStatus.EXPIRED, expired_at_unix_s=1)
        code, printed = await waiting
        assert code == 1
        assert "expired" in printed


async def test_a_batch_without_results_says_so(a_stack, lines, tmp_path, capsys) -> None:
    async with a_stack(queue=QueueScript()) as stack:
        command = Command(stack, capsys)
        batch = await command.json("submit", str(lines))
        await stack.queue.change(batch["id"], status=BatchStatus.FAILED, failed_at_unix_s=1)
        code, printed = await command("results", batch["id"], "--into", str(tmp_path))
        assert code == 1
        assert "failed and has no results" in printed


async def test_batches_are_listed_paused_resumed_and_cancelled(a_stack, lines, capsys) -> None:
    async with a_stack(queue=QueueScript()) as stack:
        command = Command(stack, capsys)
        first = await command.json("submit", str(lines))
        second = await command.json("submit", str(lines), "--tenant", "team-a")
        listed = await command.json("list")
        assert [batch["id"] for batch in listed["batches"]] == [first["id"]]
        listed = await command.json("list", "--tenant", "team-a")
        assert [batch["id"] for batch in listed["batches"]] == [second["id"]]
        assert (await command.json("pause", first["id"]))["is_paused"]
        code, printed = await command("status", first["id"])
        assert code == 0
        assert "in_progress, paused" in printed
        assert not (await command.json("resume", first["id"]))["is_paused"]
        assert (await command.json("cancel", first["id"]))["status"] == "cancelled"
        code, printed = await command("cancel", first["id"])
        assert code == 1
        assert "already" in printed


async def test_a_mistake_is_told_in_one_line(a_stack, lines, tmp_path, capsys) -> None:
    async with a_stack(queue=QueueScript()) as stack:
        command = Command(stack, capsys)
        batch = await command.json("submit", str(lines))
        for arguments, code, told in [
            (("status", "batch_0123456789"), 1, "there is no batch"),
            (("status", "../models"), 1, "there is no"),
            (("submit", str(tmp_path / "none.jsonl")), 64, "No such file"),
            (("submit", str(lines), "--metadata", "x"), 64, "key=value"),
            (("submit", str(lines), "--window", "soon"), 1, "completion_window"),
            (("submit", str(lines), "--endpoint", "/v1/embeddings"), 1, "endpoint"),
            (("submit", str(lines), "--tenant", "a b"), 1, "x-tenant"),
            (("results", batch["id"]), 1, "in_progress"),
        ]:
            exit_code, printed = await command(*arguments)
            assert exit_code == code, printed
            assert told in printed
            assert len(printed.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("url", "code"), [("http://127.0.0.1:1", 69), ("nonsense", 64), ("http://127.0.0.1:port", 64)]
)
def test_a_gateway_that_cannot_be_reached_is_told_in_one_line(
    url: str, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["batch", "cancel", "batch_0123456789", "--url", url]) == code
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


async def test_a_gateway_with_keys_is_asked_with_the_one_of_the_environment(
    a_stack, tmp_path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = tmp_path / "keys"
    keys.write_text("sk-0123456789abcdef search\n")
    async with a_stack(queue=QueueScript(), api_keys_file=str(keys)) as stack:
        command = Command(stack, capsys)
        capsys.readouterr()
        code, printed = await command("list")
        assert code != 0
        assert "API key" in printed
        monkeypatch.setenv("TIDESERVE_API_KEY", "sk-0123456789abcdef")
        assert (await command("list"))[0] == 0
