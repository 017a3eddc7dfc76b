"""The examples run as their READMEs say, here against a scripted queue."""

import asyncio
import json
from pathlib import Path

import pytest

from examples.offline_benchmark.__main__ import main as benchmark
from examples.summarise_documents.__main__ import main as summarise
from tests.scripted_queue import Line, QueueScript

DOCUMENTS = "examples/summarise_documents/documents"


def chat_answer(text: str) -> Line:
    return {"choices": [{"index": 0, "message": {"role": "assistant", "content": text}}]}


def half(body: Line) -> Line:
    """Summarise by leaving out every other word."""
    text = body["messages"][0]["content"].split("\n\n", 1)[1]
    return chat_answer(" ".join(text.split()[::2]))


async def test_documents_are_summarised_long_ones_in_parts(
    a_stack, tmp_path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with a_stack(queue=QueueScript(answer=half)) as stack:
        url = f"{stack.gateway.http_url}/v1"
        arguments = [DOCUMENTS, "--into", str(tmp_path), "--url", url, "--part-characters", "1000"]
        assert await asyncio.to_thread(summarise, arguments) == 0
    originals = sorted(Path(DOCUMENTS).glob("*.txt"))
    assert sorted(path.name for path in tmp_path.glob("*.txt")) == [
        f"{path.stem}.summary.txt" for path in originals
    ]
    for original in originals:
        summary = (tmp_path / f"{original.stem}.summary.txt").read_text()
        assert 0 < len(summary) < len(original.read_text())
    assert "round 2" in capsys.readouterr().out


async def test_a_document_that_fails_is_named_and_harms_no_other(
    a_stack, tmp_path, capsys: pytest.CaptureFixture[str]
) -> None:
    def all_but_tides(body: Line) -> Line | None:
        return None if "Bay of Fundy" in json.dumps(body) else half(body)

    async with a_stack(queue=QueueScript(answer=all_but_tides)) as stack:
        url = f"{stack.gateway.http_url}/v1"
        arguments = [DOCUMENTS, "--into", str(tmp_path), "--url", url]
        assert await asyncio.to_thread(summarise, arguments) == 1
    assert "tides: the script says no" in capsys.readouterr().err
    assert len(list(tmp_path.glob("*.txt"))) == 2


async def test_the_benchmark_reports_accuracy_by_subject(
    a_stack, capsys: pytest.CaptureFixture[str]
) -> None:
    async with a_stack(queue=QueueScript(answer=lambda _: chat_answer('"B"'))) as stack:
        url = f"{stack.gateway.http_url}/v1"
        assert await asyncio.to_thread(benchmark, ["--url", url]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[-5:]] == [
        "arithmetic",
        "geography",
        "language",
        "nature",
        "all",
    ]
    assert lines[-1].split()[1:4] == ["8", "of", "32"]


async def test_where_no_gateway_is_the_examples_say_so(
    capsys: pytest.CaptureFixture[str], tmp_path
) -> None:
    url = ["--url", "http://127.0.0.1:1/v1"]
    assert await asyncio.to_thread(benchmark, url) == 1
    assert await asyncio.to_thread(summarise, [DOCUMENTS, "--into", str(tmp_path), *url]) == 1
    assert len(capsys.readouterr().err.strip().splitlines()) == 2
