"""Prompts to token ids: the chat template and the tokenizer of each model served.

Runs on one thread of its own, so that a long prompt delays no heartbeat. Chat templates are
rendered by transformers in its sandbox; nothing of a client's message is executed.
"""

from typing import Any, Final

import jinja2
from transformers import AutoTokenizer

from libs.contracts.online import RejectReason
from libs.contracts.subjects import alias_of
from libs.kernel.errors import ConfigError
from services.online_router.commands import Tokenize
from services.online_router.events import PromptRefused, PromptTokenized

NO_TEMPLATE: Final = "this model has no chat template; send a prompt instead of messages"


class Tokenization:
    """The tokenizers of all models that this router serves, by alias."""

    def __init__(self, tokenizers: dict[str, Any]) -> None:
        self._tokenizers = tokenizers

    @property
    def aliases(self) -> tuple[str, ...]:
        """The models that can be tokenised, sorted."""
        return tuple(sorted(self._tokenizers))

    def run(self, command: Tokenize) -> PromptTokenized | PromptRefused:
        """Return the token ids of a submission's prompt, or why it has none."""
        submission = command.submission
        try:
            token_ids = self._token_ids(command)
        except (jinja2.TemplateError, ValueError, TypeError, OverflowError) as error:
            # What a tokenizer or a template raises at a client's text is the client's to know.
            message = f"the prompt cannot be tokenised: {error}"
            return PromptRefused(
                op_id=command.op_id,
                reason=RejectReason.INVALID,
                message=message[:500],
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
        if not tokenizer.chat_template:
            raise ValueError(NO_TEMPLATE)
        conversation = [
            {"role": message.role, "content": message.content}
            for message in submission.messages or ()
        ]
        text = tokenizer.apply_chat_template(
            conversation, tokenize=False, add_generation_prompt=True
        )
        return tuple(tokenizer.encode(text, add_special_tokens=False))


def load_tokenization(models: tuple[str, ...]) -> Tokenization:
    """Load one tokenizer per `alias=path` or `path`; a path may be a hub id.

    Raises: ConfigError naming the model that cannot be loaded.
    """
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
