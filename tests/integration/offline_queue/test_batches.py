"""A batch from its file to its results, over a bus in memory and over NATS."""

from libs.contracts.batches import BatchStatus
from tests.integration.offline_queue.conftest import a_line, lines


async def test_every_line_is_answered_once_as_post_would_have_answered_it(any_world) -> None:
    async with any_world() as world:
        batch_id = await world.submit(lines(150), metadata={"run": "1"})
        record = await world.ended(batch_id)
        assert record.status is BatchStatus.COMPLETED
        assert (record.counts.total, record.counts.completed, record.counts.failed) == (150, 150, 0)
        output = await world.result(record.output_file_id)
        assert [line["custom_id"] for line in output] == [f"line {n}" for n in range(150)]
        for number, line in enumerate(output):
            body = line["response"]["body"]
            assert line["error"] is None
            assert line["response"]["status_code"] == 200
            assert body["object"] == "text_completion"
            assert body["choices"][0]["text"] == f"re:prompt{number}"
        assert record.error_file_id is None
        assert record.tokens_prompt == 150 * 7
