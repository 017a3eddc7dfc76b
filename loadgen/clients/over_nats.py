"""Sends requests through the project's own client, and trusts it no further than its word."""

import asyncio
from typing import Final, Self

from libs.client.client import ClientOptions, TideClient
from libs.client.errors import RequestFailedError, RequestRefused
from libs.client.reader_events import ReaderOptions
from libs.client.token_stream import TokenStream
from libs.contracts.online import RejectReason
from libs.kernel.errors import Unavailable
from libs.kernel.units import NS_PER_S
from libs.runtime.bus import CoreBus
from libs.runtime.clock import Clock
from libs.runtime.nats_bus import NatsBus
from loadgen.clients.endings import broken, failed, judge_length, judge_prompt, rejected
from loadgen.clients.sampling import Sampling
from loadgen.records import Ending, Observation
from loadgen.workload import LoadRequest

CLIENT_NAME: Final = "loadgen"
CONNECT_TIMEOUT_NS: Final = 5 * NS_PER_S


class NatsSender:
    """A Sender over a bus. Rejections are not retried: a load must see them."""

    def __init__(
        self,
        bus: CoreBus,
        *,
        model: str,
        run_name: str,
        sampling: Sampling,
        streams_open_max: int,
        clock: Clock,
    ) -> None:
        reader = ReaderOptions(reasons_not_retried=frozenset(RejectReason))
        options = ClientOptions(reader=reader, streams_open_max=streams_open_max)
        self._bus = bus
        self._client = TideClient(bus, options=options, clock=clock)
        self._model = model
        self._run_name = run_name
        self._sampling = sampling
        self._clock = clock
        self._violation: asyncio.Task[None] | None = None

    @classmethod
    async def connect(
        cls,
        servers: str,
        *,
        model: str,
        run_name: str,
        sampling: Sampling,
        streams_open_max: int,
        clock: Clock,
    ) -> Self:
        """Connect to NATS. `run_name` begins every request id: a repeated one is not a new request.

        Raises: Unavailable when no server answers; ConfigError for a wrong URL.
        """
        bus = await NatsBus.connect(servers, name=CLIENT_NAME, timeout_ns=CONNECT_TIMEOUT_NS)
        return cls(
            bus,
            model=model,
            run_name=run_name,
            sampling=sampling,
            streams_open_max=streams_open_max,
            clock=clock,
        )

    async def __aenter__(self) -> Self:
        await self._client.start()
        self._violation = asyncio.create_task(self._client.until_failed())
        return self

    async def __aexit__(self, *_: object) -> None:
        """Cancel what is open and disconnect. Raises: InvariantViolation if the client had one."""
        await self._client.close()
        await self._bus.close()
        if self._violation is not None:
            await self._violation

    async def send(self, request: LoadRequest, seen: Observation) -> Ending:
        """See Sender.send."""
        seen.request_id = f"{self._run_name}-{request.index}"
        prompt = request.prompt
        token_ids = None if isinstance(prompt, str) else prompt
        try:
            stream = self._client.stream(
                model=self._model,
                prompt=prompt if isinstance(prompt, str) else None,
                prompt_token_ids=token_ids,
                max_tokens=request.output_tokens,
                temperature=self._sampling.temperature,
                seed=request.seed,
                ignore_eos=self._sampling.is_length_exact,
                request_id=seen.request_id,
            )
            async with stream:
                objection = await self._read(stream, seen)
        except RequestRefused as error:
            return rejected(error.reason, str(error))
        except RequestFailedError as error:
            return failed(error.reason, str(error))
        except Unavailable as error:
            return failed("unavailable", str(error))
        if objection is not None:
            return objection
        token_ids_sent = None if token_ids is None else len(token_ids)
        return self._judge(request, stream, seen, token_ids_sent=token_ids_sent)

    async def _read(self, stream: TokenStream, seen: Observation) -> Ending | None:
        async for token in stream:
            if token.index != len(seen.token_at_ns):
                explanation = f"token {token.index} came where {len(seen.token_at_ns)} was due"
                return broken("token_order", explanation)
            seen.see_tokens(1, now_ns=self._clock.now_ns())
        return None

    def _judge(
        self,
        request: LoadRequest,
        stream: TokenStream,
        seen: Observation,
        *,
        token_ids_sent: int | None,
    ) -> Ending:
        usage, finish_reason = stream.usage, stream.finish_reason
        if usage is None or finish_reason is None:
            return broken("no_finish_reason", "the answer ended without a finish reason")
        seen.prompt_tokens, seen.output_tokens = usage.prompt_tokens, usage.completion_tokens
        received = len(seen.token_at_ns)
        if usage.completion_tokens != received:
            explanation = f"{received} tokens came, {usage.completion_tokens} were reported"
            return broken("token_count", explanation)
        objection = judge_prompt(prompt_tokens=usage.prompt_tokens, token_ids_sent=token_ids_sent)
        return objection or judge_length(
            finish_reason=finish_reason,
            output_tokens=received,
            output_tokens_max=request.output_tokens,
            is_length_exact=self._sampling.is_length_exact,
        )
