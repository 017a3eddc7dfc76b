"""Tries the schemas of submissions, in a process of its own that a hostile schema may break.

One at a time: nearly all take milliseconds. A schema that breaks the process, or takes longer than
`check_ns_max`, is refused, and the next one gets a new process. What is refused by the grammar's
own limits is refused everywhere and always; the time is the last resort.
"""

import asyncio
import hashlib
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import structlog

import services
from libs.contracts.online import RejectReason
from libs.kernel.bounded import RecentMap
from libs.kernel.errors import Unavailable
from libs.kernel.units import NS_PER_S, seconds
from libs.runtime.process import die_with_parent

CHECK_NS_MAX: Final = 1 * NS_PER_S
START_NS_MAX: Final = 10 * NS_PER_S
"""For the process and the first look at a vocabulary."""
WAITING_MAX: Final = 16
"""Schemas that may wait for their turn; one more is refused as overloaded."""
VERDICTS_MAX: Final = 1024
"""Schemas that are remembered; the oldest is then tried again when it comes again."""
PROBE: Final = '{"type":"object"}'

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What is known of one schema."""

    problem: str | None
    is_given_up: bool = False
    """Whether the trial was ended from outside: another time it might succeed."""


class SchemaDesk:
    """Says which schemas an answer can be held to. Belongs to one event loop."""

    def __init__(
        self, tokenizer_of: Callable[[str], str | None], *, check_ns_max: int = CHECK_NS_MAX
    ) -> None:
        """`tokenizer_of` an alias is as JSON, megabytes of it; None where a grammar cannot use it.
        It is asked once per process."""
        self.check_ns_max = check_ns_max
        self.trials = 0
        """Schemas that were really tried, since the start."""
        self._tokenizer_of = tokenizer_of
        self._process: asyncio.subprocess.Process | None = None
        self._aliases_ready: set[str] = set()
        self._turn = asyncio.Lock()
        self._waiting = 0
        self._verdicts: RecentMap[bytes, Verdict] = RecentMap(entries_max=VERDICTS_MAX)

    @property
    def process_id(self) -> int | None:
        """The process, once a schema has come."""
        return None if self._process is None else self._process.pid

    async def refusal(self, alias: str, schema: str) -> tuple[RejectReason, str] | None:
        """Return why no answer of this model can be held to the schema, or None."""
        key = hashlib.blake2b(f"{alias}\n{schema}".encode(errors="replace")).digest()
        verdict = self._verdicts.get(key)
        if verdict is not None:
            return _told(verdict)
        if self._waiting >= WAITING_MAX:
            return RejectReason.OVERLOADED, "too many schemas wait to be looked at"
        self._waiting += 1
        try:
            async with self._turn:
                if await self._make_ready(alias):
                    verdict = await self._try(alias, schema)
                else:
                    verdict = Verdict(problem="this model's tokenizer cannot hold an answer to it")
        except Unavailable as error:
            return RejectReason.UNAVAILABLE, str(error)
        finally:
            self._waiting -= 1
        if not verdict.is_given_up:
            self._verdicts.put(key, verdict)
        return _told(verdict)

    async def close(self) -> None:
        """End the process."""
        async with self._turn:
            await self._end()

    async def _make_ready(self, alias: str) -> bool:
        """Have a process that knows this vocabulary; False if it cannot. Raises: Unavailable."""
        if alias in self._aliases_ready:
            return True
        tokenizer = self._tokenizer_of(alias)
        if tokenizer is None:
            return False
        try:
            async with asyncio.timeout(seconds(START_NS_MAX)):
                if self._process is None:
                    await self._start()
                await self._write({alias: tokenizer})
                await self._ask(alias, PROBE)
        except (TimeoutError, OSError, ValueError) as error:
            _log.error("schema_process_failed", model=alias, error=type(error).__name__)
            await self._end()
            raise Unavailable("schemas cannot be tried", retry_after_ns=NS_PER_S) from error
        except asyncio.CancelledError:
            await self._end()
            raise
        self._aliases_ready.add(alias)
        return True

    async def _try(self, alias: str, schema: str) -> Verdict:
        self.trials += 1
        try:
            async with asyncio.timeout(seconds(self.check_ns_max)):
                return Verdict(problem=await self._ask(alias, schema))
        except (TimeoutError, OSError, ValueError) as error:
            # An end of its output is no JSON either, hence ValueError.
            _log.warning("schema_too_hard", model=alias, error=type(error).__name__)
            await self._end()
            return Verdict(problem="it takes too much time or memory", is_given_up=True)
        except asyncio.CancelledError:
            # An answer that nobody took would be taken for that of the next schema.
            await self._end()
            raise

    async def _start(self) -> None:
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "services.online_router.schema_child",
            cwd=Path(services.__file__).parents[1],
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            preexec_fn=die_with_parent,
        )

    async def _ask(self, alias: str, schema: str) -> str | None:
        await self._write([alias, schema])
        assert self._process is not None
        assert self._process.stdout is not None
        problem: str | None = json.loads(await self._process.stdout.readline())
        return problem

    async def _write(self, line: object) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(line).encode() + b"\n")
        await self._process.stdin.drain()

    async def _end(self) -> None:
        process, self._process = self._process, None
        self._aliases_ready.clear()
        if process is not None and process.returncode is None:
            process.kill()
            await process.wait()


def _told(verdict: Verdict) -> tuple[RejectReason, str] | None:
    if verdict.problem is None:
        return None
    return RejectReason.INVALID, f"the schema cannot be used: {verdict.problem}"
