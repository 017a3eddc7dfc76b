"""`tideserve complete` and `tideserve chat`: one request, or a conversation, over NATS."""

import asyncio
import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import Annotated, Any

import typer

from libs.client.client import TideClient
from libs.client.request_arguments import MessageLike
from libs.client.token_stream import TokenStream
from libs.kernel.errors import ConfigError, Unavailable
from libs.kernel.units import NS_PER_S
from libs.runtime.bus import CoreBus
from services.launcher.connection import connected
from services.launcher.console import say, show_json, show_piece
from services.launcher.fleet_view import listen_once
from services.launcher.options import AsJson, DataFolder, NatsUrl
from services.launcher.state_file import DEFAULT_DATA_FOLDER, FleetState, find_nats_url

ModelOption = Annotated[
    str | None, typer.Option(help="Model to ask; the one that is served if not given.")
]
MaxTokensOption = Annotated[int | None, typer.Option(help="End after so many tokens.", min=1)]
TemperatureOption = Annotated[float, typer.Option(help="0 is greedy.", min=0.0, max=2.0)]
SeedOption = Annotated[int | None, typer.Option(help="Same seed, same answer.")]


def complete(
    prompt: Annotated[str, typer.Argument(help="Text to go on from.")],
    model: ModelOption = None,
    max_tokens: MaxTokensOption = 128,
    temperature: TemperatureOption = 0.0,
    seed: SeedOption = None,
    nats_url: NatsUrl = None,
    data_folder: DataFolder = DEFAULT_DATA_FOLDER,
    is_json: AsJson = False,
) -> None:
    """Let the model go on from a prompt and stream what it says."""
    url = find_nats_url(nats_url, data_folder)

    async def ask() -> None:
        async with connected(url, name="tideserve-complete") as bus, TideClient(bus) as client:
            alias = model or await _served_alias(bus, url, data_folder)
            stream = client.stream(
                model=alias,
                prompt=prompt,
                max_tokens=max_tokens,
                temperature=temperature,
                seed=seed,
            )
            await _show_answer(stream, is_json=is_json)

    _run(ask())


def chat(
    message: Annotated[
        str | None, typer.Option("--message", "-m", help="Ask this and end; else a conversation.")
    ] = None,
    model: ModelOption = None,
    max_tokens: MaxTokensOption = 256,
    temperature: TemperatureOption = 0.0,
    seed: SeedOption = None,
    nats_url: NatsUrl = None,
    data_folder: DataFolder = DEFAULT_DATA_FOLDER,
    is_json: AsJson = False,
) -> None:
    """Talk to the model; the conversation ends with an empty line or Ctrl-D."""
    url = find_nats_url(nats_url, data_folder)

    async def converse() -> None:
        history: list[MessageLike] = []
        async with connected(url, name="tideserve-chat") as bus, TideClient(bus) as client:
            alias = model or await _served_alias(bus, url, data_folder)
            question = message if message is not None else await _next_question()
            while question:
                history.append({"role": "user", "content": question})
                stream = client.stream(
                    model=alias,
                    messages=history,
                    max_tokens=max_tokens,
                    temperature=temperature,
                    seed=seed,
                )
                answer = await _show_answer(stream, is_json=is_json)
                history.append({"role": "assistant", "content": answer})
                question = "" if message is not None else await _next_question()

    _run(converse())


async def _show_answer(stream: TokenStream, *, is_json: bool) -> str:
    """Print the tokens as they come, or the whole as JSON; return the text."""
    texts: list[str] = []
    token_ids: list[int] = []
    async with stream:
        async for token in stream:
            texts.append(token.text)
            token_ids.append(token.token_id)
            if not is_json:
                show_piece(token.text)
    text = "".join(texts)
    if is_json:
        assert stream.usage is not None
        show_json(
            {
                "request_id": stream.request_id,
                "text": text,
                "token_ids": token_ids,
                "finish_reason": stream.finish_reason,
                "prompt_tokens": stream.usage.prompt_tokens,
                "completion_tokens": stream.usage.completion_tokens,
            }
        )
    else:
        show_piece("\n")
    return text


async def _served_alias(bus: CoreBus, url: str, data_folder: Path) -> str:
    """Return the model to ask: the fleet's own, or the only one that workers report."""
    state = FleetState.read(data_folder)
    if state is not None and state.nats_url == url:
        return state.alias
    aliases = (await listen_once(bus)).aliases()
    if not aliases:
        raise Unavailable(f"no worker reports at {url}", retry_after_ns=NS_PER_S)
    if len(aliases) > 1:
        raise ConfigError(f"--model: choose one of {', '.join(aliases)}")
    return aliases[0]


async def _next_question() -> str:
    """Read a line without stopping the loop, which keeps the connection alive meanwhile."""
    if sys.stdin.isatty():
        show_piece("> ")
    line: str = await asyncio.to_thread(sys.stdin.readline)
    return line.strip()


def _run(work: Coroutine[Any, Any, None]) -> None:
    try:
        asyncio.run(work)
    except KeyboardInterrupt:
        say("interrupted")
        raise
