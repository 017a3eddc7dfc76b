"""Reads the events of one streamed HTTP answer and decides whether it is a whole answer. Pure.

Most load generators count a stream that merely ends as a success. Here it must have one finish
reason, the usage that was asked for, `[DONE]`, nothing after any of them, and token counts that
agree. How exactly tokens can be counted depends on what the server tells; the first of these that
it gives is used:

    token ids in the chunks   >   usage so far in every chunk   >   pieces of text (a lower bound)
"""

import json
from typing import Final, TypeAlias

from loadgen.clients.endings import broken, failed, judge_length, judge_prompt
from loadgen.records import Ending

DATA_FIELD: Final = "data:"
DONE: Final = "[DONE]"
JsonObject: TypeAlias = dict[str, object]


class AnswerCheck:
    """One answer: `take_line` for each line, then `verdict`."""

    def __init__(
        self, *, output_tokens_max: int, is_length_exact: bool, token_ids_sent: int | None
    ) -> None:
        self.prompt_tokens: int | None = None
        self.output_tokens: int | None = None
        """As the usage says; None before it came."""
        self.answer_id: str | None = None
        self._output_tokens_max = output_tokens_max
        self._is_length_exact = is_length_exact
        self._token_ids_sent = token_ids_sent
        self._pieces = 0
        self._tokens_by_ids = 0
        self._tokens_by_usage: int | None = None
        self._has_token_ids = False
        self._finish_reason: str | None = None
        self._is_done = False
        self._ending: Ending | None = None

    def take_line(self, line: str) -> int:
        """Take one line of the event stream and return how many tokens came with it."""
        if not line.startswith(DATA_FIELD):
            return 0  # Blank lines, comments, and fields that this API does not use.
        content = line.removeprefix(DATA_FIELD).strip()
        if self._is_done:
            self._object_to("after_done", "an event came after [DONE]")
            return 0
        if content == DONE:
            self._is_done = True
            return 0
        try:
            chunk = json.loads(content)
        except (ValueError, RecursionError):
            chunk = None
        if not isinstance(chunk, dict):
            self._object_to("malformed", "an event is not a JSON object")
            return 0
        return self._take_chunk(chunk)

    def verdict(self, *, cut: str | None) -> Ending:
        """Decide, now that the connection has ended; `cut` says how, unless it ended cleanly."""
        if self._ending is not None:
            return self._ending
        if cut is not None:
            return broken("connection_cut", cut)
        if self._finish_reason is None:
            return broken("no_finish_reason", "the stream ended without a finish_reason")
        if not self._is_done:
            return broken("no_done", "the stream ended without [DONE]")
        if self.output_tokens is None or self.prompt_tokens is None:
            return broken("no_usage", "the stream ended without the usage that was asked for")
        return self._judge_counts(
            finish_reason=self._finish_reason,
            output_tokens=self.output_tokens,
            prompt_tokens=self.prompt_tokens,
        )

    def _take_chunk(self, chunk: JsonObject) -> int:
        error = chunk.get("error")
        if error is not None:
            code, message = error_words(error)
            self._ending = self._ending or failed(code or "error_event", message)
            return 0
        self._check_id(chunk.get("id"))
        choices = chunk.get("choices")
        if not isinstance(choices, list) or not all(isinstance(one, dict) for one in choices):
            self._object_to("malformed", "an event has no list of choices")
            return 0
        if len(choices) > 1 or any(choice.get("index", 0) != 0 for choice in choices):
            self._object_to("malformed", "a chunk belongs to an answer that was not asked for")
            return 0
        tokens = sum(self._take_choice(choice) for choice in choices)
        return self._take_usage(chunk.get("usage"), is_last=not choices, tokens=tokens)

    def _take_choice(self, choice: JsonObject) -> int:
        """Return the tokens of a choice by its own evidence."""
        token_ids = choice.get("token_ids")
        text = _text_of(choice)
        if (text or token_ids) and self._finish_reason is not None:
            self._object_to("after_finish", "text came after the finish_reason")
        reason = choice.get("finish_reason")
        if reason is not None:
            if self._finish_reason is not None:
                self._object_to("finish_reason", "a second finish_reason came")
            self._finish_reason = str(reason)
        self._pieces += bool(text)
        if isinstance(token_ids, list):
            self._has_token_ids = True
            self._tokens_by_ids += len(token_ids)
            return len(token_ids)
        return int(bool(text))

    def _take_usage(self, usage: object, *, is_last: bool, tokens: int) -> int:
        """Note a usage; return the tokens of this chunk by the best evidence."""
        if usage is None:
            return tokens
        counts = _counts_of(usage)
        if counts is None:
            self._object_to("malformed", "a usage has no whole token counts")
            return tokens
        if is_last:
            if self.output_tokens is not None:
                self._object_to("malformed", "a second usage came")
            self.prompt_tokens, self.output_tokens = counts
            return tokens
        before = self._tokens_by_usage or 0
        self._tokens_by_usage = counts[1]
        if counts[1] < before:
            self._object_to("token_count", "the usage so far went down")
        return tokens if self._has_token_ids else max(0, counts[1] - before)

    def _judge_counts(
        self, *, finish_reason: str, output_tokens: int, prompt_tokens: int
    ) -> Ending:
        received: int | None = self._tokens_by_usage
        if self._has_token_ids:
            received = self._tokens_by_ids
        if received is not None and received != output_tokens:
            explanation = f"{received} tokens came, {output_tokens} were reported"
            return broken("token_count", explanation)
        if self._pieces > output_tokens:
            explanation = f"{self._pieces} pieces of text for {output_tokens} reported tokens"
            return broken("token_count", explanation)
        objection = judge_prompt(prompt_tokens=prompt_tokens, token_ids_sent=self._token_ids_sent)
        return objection or judge_length(
            finish_reason=finish_reason,
            output_tokens=output_tokens,
            output_tokens_max=self._output_tokens_max,
            is_length_exact=self._is_length_exact,
        )

    def _check_id(self, answer_id: object) -> None:
        if not isinstance(answer_id, str):
            return
        if self.answer_id is not None and answer_id != self.answer_id:
            self._object_to("id_changed", "the chunks do not all have the same id")
        self.answer_id = answer_id

    def _object_to(self, reason: str, explanation: str) -> None:
        """Keep the first objection: what follows is a consequence."""
        self._ending = self._ending or broken(reason, explanation)


def error_words(error: object) -> tuple[str, str]:
    """Return code and message of an error object in any of the shapes that servers send."""
    if not isinstance(error, dict):
        return "", str(error)
    code = error.get("code") or error.get("type")
    return "" if code is None else str(code), str(error.get("message", error))


def _text_of(choice: JsonObject) -> str:
    delta = choice.get("delta")
    text = delta.get("content") if isinstance(delta, dict) else choice.get("text")
    return text if isinstance(text, str) else ""


def _counts_of(usage: object) -> tuple[int, int] | None:
    """Return prompt and completion tokens."""
    if not isinstance(usage, dict):
        return None
    prompt_tokens, output_tokens = usage.get("prompt_tokens"), usage.get("completion_tokens")
    if not isinstance(prompt_tokens, int) or not isinstance(output_tokens, int):
        return None
    return prompt_tokens, output_tokens
