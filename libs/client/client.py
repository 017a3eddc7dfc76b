"""The door of the client: publish requests, read their tokens exactly once.

    async with await TideClient.connect("nats://127.0.0.1:4222") as client:
        async for token in client.stream(model="tide-tiny", prompt="The tide"):
            answer += token.text

One subscription serves all requests of a client: the last token of an answer's subject is the
request id. Whatever is lost on the way is asked for again; see reader.StreamReader.
"""

import asyncio
import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Self, Unpack

from libs.client.answers import Token, Usage
from libs.client.conversation import Conversation
from libs.client.errors import RequestRefused
from libs.client.reader_events import ReaderOptions
from libs.client.request_arguments import RequestArguments, submission_of
from libs.client.token_stream import RETRY_AFTER_NS, TokenStream
from libs.contracts import subjects
from libs.contracts.online import (
    ANSWERS,
    CancelRequest,
    FinishReason,
    RejectReason,
    SubmitRequest,
    TokenLogprobs,
)
from libs.contracts.text import TEXT_ANSWERS, AboutText, TextAnswer, TextRejected
from libs.contracts.wire import Encoding, encode
from libs.kernel.errors import ContractViolation, InvariantViolation, Unavailable
from libs.kernel.units import NS_PER_S
from libs.runtime.bus import NO_HEADERS, BusMessage, CoreBus, PayloadTooLarge, Subscription
from libs.runtime.clock import Clock, SystemClock
from libs.runtime.nats_bus import NatsBus

DEFAULT_SERVERS: Final = "nats://127.0.0.1:4222"
NO_RESPONDERS_STATUS: Final = "503"
TEXT_TIMEOUT_NS: Final = 10 * NS_PER_S


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientOptions:
    """Limits of one client."""

    reader: ReaderOptions = field(default_factory=ReaderOptions)
    """How patient each stream is."""
    encoding: Encoding = Encoding.MSGPACK
    """How submissions are encoded; answers come in the same encoding."""
    streams_open_max: int = 10_000
    """Requests open at once; past it a new one is refused as overloaded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """A whole answer."""

    request_id: str
    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    usage: Usage
    logprobs: tuple[TokenLogprobs, ...] = ()
    """One per token where the request asked for them, else empty."""


class TideClient:
    """Publishes requests on a bus. Belongs to one event loop; any number of streams at once."""

    def __init__(
        self,
        bus: CoreBus,
        *,
        options: ClientOptions | None = None,
        clock: Clock | None = None,
    ) -> None:
        self._bus = bus
        self._options = options or ClientOptions()
        self._clock = clock or SystemClock()
        self._inbox = bus.new_inbox()
        self._conversations: dict[str, Conversation] = {}
        self._subscription: Subscription | None = None
        self._dispatcher: asyncio.Task[None] | None = None
        self._end: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._owns_bus = False
        self.answers_ignored = 0
        """Messages on the inbox that were malformed or belong to no open request."""

    @classmethod
    async def connect(
        cls,
        servers: str = DEFAULT_SERVERS,
        *,
        name: str = "tide-client",
        options: ClientOptions | None = None,
    ) -> Self:
        """Connect to NATS and start; `close` disconnects.

        Several servers of one cluster are separated by commas; the name shows in NATS' monitoring.
        Raises: Unavailable when no server answers in time; ConfigError for a wrong URL.
        """
        bus = await NatsBus.connect(servers, name=name)
        client = cls(bus, options=options)
        client._owns_bus = True
        await client.start()
        return client

    @property
    def streams_open(self) -> int:
        """How many requests have been sent and have not ended."""
        return len(self._conversations)

    async def start(self) -> None:
        """Subscribe to the inbox; needed once before the first stream is read."""
        assert self._subscription is None
        self._subscription = await self._bus.subscribe(f"{self._inbox}.*")
        self._dispatcher = asyncio.create_task(self._dispatch(self._subscription))

    async def close(self) -> None:
        """Cancel what is open, then let go of the inbox, and of the connection if it is ours."""
        for conversation in list(self._conversations.values()):
            conversation.leave()
            await conversation.finish_effects()
        if self._subscription is not None:
            await self._subscription.close()
        if self._dispatcher is not None:
            await self._dispatcher
        if not self._end.done():
            self._end.set_result(None)
        if self._owns_bus:
            await self._bus.close()

    async def __aenter__(self) -> Self:
        if self._subscription is None:
            await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def stream(self, *, model: str, **arguments: Unpack[RequestArguments]) -> TokenStream:
        """Prepare a request; it is sent when the stream is first read.

        Give exactly one of prompt, messages and prompt_token_ids. The same request_id with the
        same arguments is the same request, also from another client or after a crash of this one.

        Raises: RequestRefused if the arguments are not a valid request.
        """
        return self.submit(model, submission_of(arguments))

    def submit(
        self,
        model: str,
        submission: SubmitRequest,
        *,
        headers: Mapping[str, str] = NO_HEADERS,
    ) -> TokenStream:
        """Prepare a request that is a message already; see `stream`.

        The headers go with every submission of it, such as the context of a trace.
        """
        return TokenStream(
            Conversation(
                bus=self._bus,
                clock=self._clock,
                subject=subjects.online(subjects.alias_of(model)),
                reply_to=f"{self._inbox}.{submission.request_id}",
                submission=submission,
                headers=headers,
                encoding=self._options.encoding,
                options=self._options.reader,
                on_open=self._remember,
                on_end=self._forget,
                on_violation=self._violated,
            )
        )

    async def complete(self, *, model: str, **arguments: Unpack[RequestArguments]) -> Completion:
        """Send a request and return the whole answer; arguments and errors as of `stream`."""
        stream = self.stream(model=model, **arguments)
        async with stream:
            tokens: list[Token] = [token async for token in stream]
        assert stream.finish_reason is not None
        assert stream.usage is not None
        return Completion(
            request_id=stream.request_id,
            text="".join(token.text for token in tokens),
            token_ids=tuple(token.token_id for token in tokens),
            finish_reason=stream.finish_reason,
            usage=stream.usage,
            logprobs=tuple(token.logprobs for token in tokens if token.logprobs is not None),
        )

    async def forget(self, request_id: str) -> None:
        """Tell the routers that nobody will ask for this ended request again; may be lost."""
        with contextlib.suppress(Unavailable):
            cancellation = CancelRequest(request_id=request_id)
            await self._bus.publish(subjects.cancel(request_id), encode(cancellation))

    async def ask_about_text(self, model: str, question: AboutText) -> TextAnswer:
        """Have a router tokenise or detokenise; nothing is generated.

        Raises: RequestRefused; Unavailable if no router answers in time.
        """
        subject = subjects.text(subjects.alias_of(model))
        payload = encode(question, encoding=self._options.encoding)
        try:
            reply = await self._bus.request(subject, payload, timeout_ns=TEXT_TIMEOUT_NS)
        except PayloadTooLarge as error:
            raise RequestRefused(str(error), reason=RejectReason.TOO_LARGE) from error
        try:
            answer = TEXT_ANSWERS.decode(reply.payload)
        except ContractViolation as violation:
            raise Unavailable(str(violation), retry_after_ns=RETRY_AFTER_NS) from violation
        if isinstance(answer, TextRejected):
            raise RequestRefused(answer.message, reason=answer.reason, parameter=answer.parameter)
        return answer

    async def until_failed(self) -> None:
        """Return when the client is closed; may be awaited once.

        Raises: InvariantViolation if our own code is at fault: the process had better end then.
        """
        await self._end

    async def _dispatch(self, subscription: Subscription) -> None:
        async for message in subscription:
            conversation = self._conversations.get(message.subject.rpartition(".")[2])
            if conversation is None:
                self.answers_ignored += 1
            else:
                self._hand_over(conversation, message)

    def _hand_over(self, conversation: Conversation, message: BusMessage) -> None:
        if not message.payload and message.headers.get("Status") == NO_RESPONDERS_STATUS:
            conversation.unheard("no router listens")
            return
        try:
            conversation.receive(ANSWERS.decode(message.payload))
        except ContractViolation:
            self.answers_ignored += 1

    def _remember(self, conversation: Conversation) -> None:
        request_id = conversation.request_id
        if request_id in self._conversations:
            message = f"request {request_id} is open in this client already"
            raise RequestRefused(message, reason=RejectReason.INVALID, parameter="request_id")
        if len(self._conversations) >= self._options.streams_open_max:
            raise RequestRefused(
                "this client has too many requests open",
                reason=RejectReason.OVERLOADED,
                retry_after_ns=1 * NS_PER_S,
            )
        self._conversations[request_id] = conversation

    def _violated(self, violation: InvariantViolation) -> None:
        if not self._end.done():
            self._end.set_exception(violation)

    def _forget(self, request_id: str) -> None:
        self._conversations.pop(request_id, None)
