"""Load by locust: streamed chats whose time to first token is a line of its own in the report.

    .venv-clients/bin/locust -f examples/clients/locustfile.py --host http://127.0.0.1:8000

For a load that follows published traces and checks every token there is `tideserve bench load`.
"""

import json
import time
from collections.abc import Iterable

from locust import HttpUser, between, task

NAME = "chat, streamed"


class Asker(HttpUser):  # type: ignore[misc]  # locust is not there when types are checked
    """Somebody who reads an answer, thinks for a moment and asks again."""

    wait_time = between(0.5, 2)

    def on_start(self) -> None:
        """Ask whichever model the fleet serves."""
        models = self.client.get("/v1/models").json()["data"]
        self.model = models[0]["id"]

    @task  # type: ignore[untyped-decorator]
    def ask(self) -> None:
        """Read one answer to its end; one that breaks off is a failure."""
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": "What is a dictionary?"}],
            "max_tokens": 64,
            "stream": True,
        }
        began_s = time.perf_counter()
        path = "/v1/chat/completions"
        with self.client.post(
            path, json=body, name=NAME, stream=True, catch_response=True
        ) as response:
            if response.status_code != 200:
                response.failure(response.text)
                return
            finish_reason = self._read(response.iter_lines(), began_s=began_s)
            if finish_reason is None:
                response.failure("the stream broke off")

    def _read(self, lines: Iterable[bytes], *, began_s: float) -> str | None:
        """Return why the answer ended, None if it did not; report its first token."""
        finish_reason, is_first = None, True
        for line in lines:
            if not line.startswith(b"data: {"):
                continue
            for choice in json.loads(line.removeprefix(b"data: ")).get("choices", []):
                finish_reason = choice["finish_reason"]
                if is_first and choice["delta"].get("content"):
                    is_first = False
                    self._report_first_token((time.perf_counter() - began_s) * 1000)
        return finish_reason

    def _report_first_token(self, after_ms: float) -> None:
        self.environment.events.request.fire(
            request_type="TTFT",
            name=NAME,
            response_time=after_ms,
            response_length=0,
            exception=None,
        )
