"""The commands that `up` prints last: each works as it stands, in another terminal."""

import json
import sys


def commands_to_paste(
    *, nats_url: str, http_url: str | None, alias: str, has_queue: bool, has_keys: bool = False
) -> str:
    """Return the fleet's addresses and a command each for NATS, curl, openai and a batch."""
    return "\n".join(
        [
            "",
            f"The fleet is ready and serves {alias}.",
            f"  NATS  {nats_url}",
            *([f"  HTTP  {http_url}/v1", f"  see   {http_url}/dashboard"] if http_url else []),
            "",
            "Paste into another terminal:",
            "",
            "# 1. over NATS, as JSON; a client in any language can do the same",
            nats_command(nats_url=nats_url, alias=alias),
            *(_http_part(http_url=http_url, alias=alias, has_keys=has_keys) if http_url else []),
            *(_batch_part(http_url=http_url, alias=alias) if http_url and has_queue else []),
            "",
            "Ctrl-C stops the fleet.",
        ]
    )


def nats_command(*, nats_url: str, alias: str) -> str:
    """Return a shell command that speaks the raw NATS form with nothing but nats-py."""
    return f"""{sys.executable} - <<'END'
import asyncio, json, nats, uuid
async def main():
    bus = await nats.connect("{nats_url}")
    inbox = bus.new_inbox()
    answers = await bus.subscribe(inbox)
    question = [{{"role": "user", "content": "What does str.split do?"}}]
    request = {{"request_id": uuid.uuid4().hex, "messages": question, "max_tokens": 200}}
    await bus.publish("tide.v1.online.{alias}", json.dumps(request).encode(), reply=inbox)
    async for message in answers.messages:
        answer = json.loads(message.data)
        print("".join(answer.get("texts", [])), end="", flush=True)
        if answer["type"] not in ("request_accepted.v1", "tokens_generated.v1"):
            print("\\n", answer)
            break
    await bus.close()
asyncio.run(main())
END"""


def _http_part(*, http_url: str, alias: str, has_keys: bool) -> list[str]:
    key = ["export TIDESERVE_API_KEY=...  # one of those in the file"] if has_keys else []
    return [
        "",
        "# 2. over HTTP",
        *key,
        curl_command(http_url=http_url, alias=alias, has_keys=has_keys),
        "",
        "# 3. with OpenAI's client",
        openai_command(http_url=http_url, alias=alias, has_keys=has_keys),
    ]


def _batch_part(*, http_url: str, alias: str) -> list[str]:
    return [
        "",
        "# 4. a file of requests, answered while there is room",
        batch_command(http_url=http_url, alias=alias),
    ]


def curl_command(*, http_url: str, alias: str, has_keys: bool = False) -> str:
    """Return a curl command that streams a chat answer."""
    key = ' -H "Authorization: Bearer $TIDESERVE_API_KEY"' if has_keys else ""
    body = (
        f'{{"model": "{alias}", "stream": true, "messages":'
        ' [{"role": "user", "content": "What does str.split do?"}]}'
    )
    return f"""curl -sN {http_url}/v1/chat/completions -H 'Content-Type: application/json'{key} \\
  -d '{body}'"""


def openai_command(*, http_url: str, alias: str, has_keys: bool = False) -> str:
    """Return a shell command that uses OpenAI's Python client."""
    key = 'os.environ["TIDESERVE_API_KEY"]' if has_keys else '"none"'
    return f"""{sys.executable} - <<'END'
import openai, os
client = openai.OpenAI(base_url="{http_url}/v1", api_key={key})
question = [{{"role": "user", "content": "What does str.split do?"}}]
for chunk in client.chat.completions.create(model="{alias}", messages=question, stream=True):
    print(chunk.choices[0].delta.content or "", end="", flush=True)
print()
END"""


def batch_command(*, http_url: str, alias: str) -> str:
    """Return shell commands that write a file of one request and have it answered."""
    question = [{"role": "user", "content": "What does str.split do?"}]
    line = {
        "custom_id": "question-1",
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": {"model": alias, "messages": question, "max_tokens": 200},
    }
    return f"""cat > requests.jsonl <<'END'
{json.dumps(line)}
END
{sys.executable} -m services.launcher batch submit requests.jsonl --wait --url {http_url}"""
