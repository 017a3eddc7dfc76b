"""Prompts to token ids: the chat template and the tokenizer of each model served.

Runs on one thread of its own, so that a long prompt delays no heartbeat. Chat templates are
rendered by transformers in its sandbox; nothing of a client's message is executed.
"""

import contextlib
import json
from collections.abc import Sequence
from typing import Any, Final

import jinja2
from pydantic import JsonValue

from libs.contracts.online import ChatMessage, RejectReason
from libs.contracts.subjects import alias_of
from libs.contracts.text import (
    AboutText,
    DetokenizeIds,
    IdsDetokenized,
    TextAnswer,
    TextRejected,
    TextTokenized,
    TokenizeText,
)
from libs.engine.grammar import serialised
from libs.kernel.errors import ConfigError
from services.online_router.commands import Tokenize
from services.online_router.events import PromptRefused, PromptTokenized

NO_TEMPLATE: Final = "this model has no chat template; send a prompt instead of messages"
REFUSAL_CHARACTERS_MAX: Final = 500
TEXT_ERRORS: Final = (
    jinja2.TemplateError,
    ValueError,
    TypeError,
    OverflowError,
    AttributeError,
    LookupError,
)
"""What a tokenizer or a template raises at a text that it cannot take."""


class Tokenization:
    """The tokenizers of all models that this router serves, by alias."""

    def __init__(self, tokenizers: dict[str, Any]) -> None:
        self._tokenizers = tokenizers

    @property
    def aliases(self) -> tuple[str, ...]:
        """The models that can be tokenised, sorted."""
        return tuple(sorted(self._tokenizers))

    def serialised(self, alias: str) -> str | None:
        """Return the model's tokenizer as JSON; None where it has no such form."""
        return serialised(self._tokenizers[alias])

    def run(self, command: Tokenize) -> PromptTokenized | PromptRefused:
        """Return the token ids of a submission's prompt, or why it has none."""
        submission = command.submission
        try:
            token_ids = self._token_ids(command)
        except TEXT_ERRORS as error:
            # What a tokenizer or a template raises at a client's text is the client's to know.
            message = f"the prompt cannot be tokenised: {error}"
            return PromptRefused(
                op_id=command.op_id,
                reason=RejectReason.INVALID,
                message=message[:REFUSAL_CHARACTERS_MAX],
                cause_id=submission.request_id,
            )
        return PromptTokenized(
            op_id=command.op_id, prompt_token_ids=token_ids, cause_id=submission.request_id
        )

    def _token_ids(self, command: Tokenize) -> tuple[int, ...]:
        submission = command.submission
        if submission.prompt_token_ids is not None:
            return submission.prompt_token_ids
        tokenizer = self._tokenizers[command.alias]
        if submission.prompt is not None:
            return tuple(tokenizer.encode(submission.prompt))
        text = _rendered(tokenizer, submission.messages or (), tools=submission.tools)
        return tuple(tokenizer.encode(text, add_special_tokens=False))

    def answer(self, alias: str, question: AboutText) -> TextAnswer:
        """Answer a question about text; a refusal is an answer."""
        tokenizer = self._tokenizers.get(alias)
        if tokenizer is None:
            return TextRejected(
                reason=RejectReason.MODEL_NOT_FOUND,
                message=f"the model '{alias}' is not served here",
                parameter="model",
            )
        try:
            match question:
                case TokenizeText():
                    return _tokenized(tokenizer, question)
                case DetokenizeIds():
                    return _detokenized(tokenizer, question)
        except TEXT_ERRORS as error:
            message = f"the text cannot be processed: {error}"[:REFUSAL_CHARACTERS_MAX]
            return TextRejected(reason=RejectReason.INVALID, message=message)


def _tokenized(tokenizer: Any, question: TokenizeText) -> TextTokenized:
    is_special = question.add_special_tokens
    if question.prompt is not None:
        token_ids = tokenizer.encode(question.prompt, add_special_tokens=is_special is not False)
    else:
        text = _rendered(
            tokenizer,
            question.messages or (),
            tools=question.tools,
            add_generation_prompt=question.add_generation_prompt,
        )
        token_ids = tokenizer.encode(text, add_special_tokens=is_special is True)
    texts = tokenizer.convert_ids_to_tokens(token_ids) if question.with_token_texts else ()
    return TextTokenized(token_ids=tuple(token_ids), token_texts=tuple(texts))


def _detokenized(tokenizer: Any, question: DetokenizeIds) -> IdsDetokenized | TextRejected:
    if max(question.token_ids, default=0) >= len(tokenizer):
        return TextRejected(
            reason=RejectReason.INVALID,
            message=f"token ids must lie below the vocabulary size of {len(tokenizer)}",
            parameter="token_ids",
        )
    return IdsDetokenized(text=tokenizer.decode(question.token_ids))


def _rendered(
    tokenizer: Any,
    messages: Sequence[ChatMessage],
    *,
    tools: Sequence[dict[str, JsonValue]],
    add_generation_prompt: bool = True,
) -> str:
    """Return the conversation as the model's template has it. Raises: what a template raises."""
    if not tokenizer.chat_template:
        raise ValueError(NO_TEMPLATE)
    text: str = tokenizer.apply_chat_template(
        [_for_template(message) for message in messages],
        tools=list(tools) or None,
        tokenize=False,
        add_generation_prompt=add_generation_prompt,
    )
    return text


def _for_template(message: ChatMessage) -> dict[str, Any]:
    shown = message.model_dump(mode="json", exclude_defaults=True)
    for call in shown.get("tool_calls", ()):
        function = call.get("function")
        # Templates want the arguments as an object; OpenAI's API has them as its text.
        if isinstance(function, dict) and isinstance(function.get("arguments"), str):
            with contextlib.suppress(ValueError):
                function["arguments"] = json.loads(function["arguments"])
    return shown


def load_tokenization(models: tuple[str, ...]) -> Tokenization:
    """Load one tokenizer per `alias=path` or `path`; a path may be a hub id.

    Raises: ConfigError naming the model that cannot be loaded.
    """
    # Imported here: the process first decides what transformers may bring with it.
    from transformers import AutoTokenizer

    tokenizers: dict[str, Any] = {}
    for model in models:
        name, separator, path = model.partition("=")
        if not separator:
            name, path = model.rstrip("/").rpartition("/")[2], model
        try:
            tokenizers[alias_of(name)] = AutoTokenizer.from_pretrained(path)
        except (OSError, ValueError, KeyError) as error:
            reason = str(error).strip().splitlines()[0]
            raise ConfigError(f"models: no tokenizer in '{path}': {reason}") from error
    return Tokenization(tokenizers)
