"""Text and token ids, as a router's tokenizer has them: /tokenize, /detokenize, echo, token ids.

The shapes of /tokenize and /detokenize are those of vLLM's server.
"""

from pydantic import ValidationError

from libs.client.client import TideClient
from libs.client.errors import RequestRefused
from libs.contracts.online import SubmitRequest
from libs.contracts.text import (
    AboutText,
    DetokenizeIds,
    IdsDetokenized,
    TextAnswer,
    TextTokenized,
    TokenizeText,
)
from libs.kernel.errors import Unavailable
from libs.openai_api.answer_form import JsonObject
from libs.openai_api.chat import chat_messages
from libs.openai_api.errors import RETRY_AFTER_NS, ApiError, from_exception, from_validation
from libs.openai_api.schemas import DetokenizeRequest, TokenizeRequest


class TextQuestions:
    """Asks routers about text over a client of the bus. Every method raises ApiError."""

    def __init__(self, client: TideClient) -> None:
        self._client = client

    async def tokenize(
        self, request: TokenizeRequest, *, model: str, context_tokens_max: int | None
    ) -> JsonObject:
        """Return the answer of /tokenize."""
        parameter = "prompt" if request.messages is None else "messages"
        answer = await self._tokenized(_question(request), model=model, prompt_parameter=parameter)
        return {
            "count": len(answer.token_ids),
            "max_model_len": context_tokens_max,
            "tokens": list(answer.token_ids),
            "token_strs": list(answer.token_texts) if request.return_token_strs else None,
        }

    async def detokenize(self, request: DetokenizeRequest, *, model: str) -> JsonObject:
        """Return the answer of /detokenize."""
        text = await self.text_of(tuple(request.tokens), model=model, prompt_parameter="tokens")
        return {"prompt": text}

    async def text_of(
        self, token_ids: tuple[int, ...], *, model: str, prompt_parameter: str
    ) -> str:
        """Return the text of these token ids."""
        question = DetokenizeIds(token_ids=token_ids)
        answer = await self._ask(question, model=model, prompt_parameter=prompt_parameter)
        assert isinstance(answer, IdsDetokenized)
        return answer.text

    async def with_token_ids(
        self, submission: SubmitRequest, *, model: str, prompt_parameter: str
    ) -> SubmitRequest:
        """Return the same submission with its prompt as token ids."""
        if submission.prompt_token_ids is not None:
            return submission
        question = TokenizeText(
            prompt=submission.prompt, messages=submission.messages, tools=submission.tools
        )
        answer = await self._tokenized(question, model=model, prompt_parameter=prompt_parameter)
        return submission.model_copy(
            update={
                "prompt": None,
                "messages": None,
                "tools": (),
                "prompt_token_ids": answer.token_ids,
            }
        )

    async def _tokenized(
        self, question: TokenizeText, *, model: str, prompt_parameter: str
    ) -> TextTokenized:
        answer = await self._ask(question, model=model, prompt_parameter=prompt_parameter)
        assert isinstance(answer, TextTokenized)
        return answer

    async def _ask(self, question: AboutText, *, model: str, prompt_parameter: str) -> TextAnswer:
        try:
            answer = await self._client.ask_about_text(model, question)
        except (RequestRefused, Unavailable) as error:
            told = from_exception(error, prompt_parameter=prompt_parameter)
            raise ApiError(told) from error
        wanted = TextTokenized if isinstance(question, TokenizeText) else IdsDetokenized
        if not isinstance(answer, wanted):
            raise _other_answer(prompt_parameter)
        return answer


def _question(request: TokenizeRequest) -> TokenizeText:
    messages = request.messages
    try:
        return TokenizeText(
            prompt=request.prompt,
            messages=None if messages is None else chat_messages(messages),
            tools=tuple(request.tools or ()) if messages is not None else (),
            add_special_tokens=request.add_special_tokens,
            add_generation_prompt=request.add_generation_prompt is not False,
            with_token_texts=bool(request.return_token_strs),
        )
    except ValidationError as error:
        raise from_validation(error) from None


def _other_answer(prompt_parameter: str) -> ApiError:
    error = Unavailable(
        "a router gave another answer than asked for", retry_after_ns=RETRY_AFTER_NS
    )
    return ApiError(from_exception(error, prompt_parameter=prompt_parameter))
