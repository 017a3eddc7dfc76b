"""Whether a whole file can be a batch, and what is known of it then; pure."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from libs.contracts.batches import BATCH_LINES_MAX, LINE_ERRORS_MAX, LineError
from libs.contracts.subjects import alias_of
from services.offline_queue.line_file import (
    LineSplitter,
    PartGrouping,
    PartRange,
    RawLine,
    read_line,
)

DIGEST_BYTES: Final = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What is known of a whole file."""

    lines: int
    """That ask for something."""
    alias: str | None
    parts: Sequence[PartRange]
    errors: Sequence[LineError]
    """The first LINE_ERRORS_MAX of them; none means that the batch can begin."""
    tokens_predicted: int


@dataclass(slots=True)
class FileJudge:
    """Judges a file as its bytes come; memory does not grow with the length of its lines."""

    endpoint: str
    _splitter: LineSplitter = field(default_factory=LineSplitter)
    _grouping: PartGrouping = field(default_factory=PartGrouping)
    _parts: list[PartRange] = field(default_factory=list)
    _errors: list[LineError] = field(default_factory=list)
    _custom_ids: set[bytes] = field(default_factory=set)
    _alias: str | None = None
    _lines: int = 0
    _tokens: int = 0

    def feed(self, content: bytes) -> bool:
        """Judge the lines that end here; return whether to go on reading."""
        for line in self._splitter.feed(content):
            self._judge(line)
        return self._lines <= BATCH_LINES_MAX and len(self._errors) < LINE_ERRORS_MAX

    def finish(self) -> Verdict:
        """Return the verdict; after a `feed` that returned False it may be over a part only."""
        for line in self._splitter.finish():
            self._judge(line)
        last = self._grouping.finish()
        if last is not None:
            self._parts.append(last)
        if self._lines == 0:
            self._refuse("empty_file", "the file has no requests")
        if self._lines > BATCH_LINES_MAX:
            self._refuse("too_many_lines", f"a batch has at most {BATCH_LINES_MAX} requests")
        return Verdict(
            lines=self._lines,
            alias=self._alias,
            parts=self._parts,
            errors=self._errors[:LINE_ERRORS_MAX],
            tokens_predicted=self._tokens,
        )

    def _judge(self, raw: RawLine) -> None:
        part = self._grouping.add(raw)
        if part is not None:
            self._parts.append(part)
        if raw.is_blank:
            return
        self._lines += 1
        line = read_line(raw, endpoint=self.endpoint)
        if isinstance(line, LineError):
            self._errors.append(line)
            return
        digest = hashlib.blake2b(line.custom_id.encode(), digest_size=DIGEST_BYTES).digest()
        if digest in self._custom_ids:
            message = "this custom_id was used by an earlier line"
            self._refuse("duplicate_custom_id", message, line=raw.number, parameter="custom_id")
        self._custom_ids.add(digest)
        alias = alias_of(line.request.model)
        self._alias = self._alias or alias
        if alias != self._alias:
            message = "all requests of a batch go to one model"
            self._refuse("mismatched_model", message, line=raw.number, parameter="body.model")
        self._tokens += line.prompt_tokens_predicted + line.answer_tokens_predicted

    def _refuse(
        self, code: str, message: str, *, line: int | None = None, parameter: str | None = None
    ) -> None:
        error = LineError(code=code, message=message, line=line, parameter=parameter)
        if line is None:  # of the whole file: more telling than any line's
            self._errors.insert(0, error)
        else:
            self._errors.append(error)
