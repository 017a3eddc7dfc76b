"""The choices of one answer while they are generated."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Final

from libs.client.together import cancel_all
from libs.client.token_stream import TokenStream
from libs.openai_api.answer_form import Ended, Piece

PIECES_WAITING_MAX: Final = 32
"""Pieces taken from the choices' own buffers and not yet written."""


@dataclass(slots=True, kw_only=True)
class Choice:
    """One choice under way."""

    index: int
    stream: TokenStream
    on_tokens: Callable[[], None]
    """Called whenever tokens have been read."""
    tokens: int = 0
    """Tokens read so far."""

    async def pieces(self) -> AsyncGenerator[Piece | Ended, None]:
        """Yield the tokens as they come, then the end.

        A reader that falls behind gets what has arrived meanwhile in one piece.
        """
        characters = 0
        async for token in self.stream:
            tokens = (token, *self.stream.take_ready())
            self._count(len(tokens))
            piece = Piece(choice_index=self.index, tokens=tokens, characters_before=characters)
            characters += len(piece.text)
            yield piece
        yield self._ended()

    async def whole(self) -> tuple[Piece, Ended]:
        """Return all tokens and the end."""
        tokens = []
        async for token in self.stream:
            tokens.append(token)
            self._count(1)
        piece = Piece(choice_index=self.index, tokens=tokens, characters_before=0)
        return piece, self._ended()

    def _count(self, tokens: int) -> None:
        self.tokens += tokens
        self.on_tokens()

    def _ended(self) -> Ended:
        assert self.stream.finish_reason is not None
        return Ended(choice_index=self.index, finish_reason=self.stream.finish_reason)


async def merged(choices: Sequence[Choice]) -> AsyncGenerator[Piece | Ended, None]:
    """Yield the pieces of all choices as they come. Raises the first error of any."""
    if len(choices) == 1:
        async with aclosing(choices[0].pieces()) as pieces:
            async for piece in pieces:
                yield piece
        return
    arrived: asyncio.Queue[Piece | Ended | asyncio.Task[None]] = asyncio.Queue()
    room = asyncio.Semaphore(PIECES_WAITING_MAX)

    async def read(choice: Choice) -> None:
        async with aclosing(choice.pieces()) as pieces:
            async for piece in pieces:
                await room.acquire()
                arrived.put_nowait(piece)

    tasks = [asyncio.create_task(read(choice)) for choice in choices]
    for task in tasks:
        task.add_done_callback(arrived.put_nowait)
    try:
        running = len(tasks)
        while running:
            item = await arrived.get()
            if isinstance(item, asyncio.Task):
                item.result()
                running -= 1
            else:
                room.release()
                yield item
    finally:
        await cancel_all(tasks)
