"""Gets every token to its router: at once after the step, and again until it is acknowledged.

The wait before a repetition starts at `resend_after_ns`, doubles with every repetition without an
answer up to `resend_after_ns_max`, and starts anew with every receipt that says something new.
"""

from collections.abc import Iterable

from libs.contracts.online import TokenLogprobs
from libs.contracts.sessions import TokenReceipt
from libs.contracts.token_step import SessionTokens, TokenStep
from libs.engine.steps import TokenEmitted
from services.gpu_worker.commands import SendTokens
from services.gpu_worker.options import WorkerOptions
from services.gpu_worker.sessions import HeldSession, SessionTable

ENTRY_BYTES = 128
"""Request id, epoch, index, finish reason and framing of one entry, at most."""
TOKEN_BYTES = 5 + 5
"""A token id and the head of its text, at most."""
CHARACTER_BYTES = 4
"""UTF-8, at most."""
SCORE_BYTES = 9 + TOKEN_BYTES + 1
"""A log probability beside its token, at most."""
SCORES_BYTES = 1 + 5
"""Framing of one token's log probabilities, at most."""


class Delivery:
    """Knows what is unacknowledged, and packs it per router."""

    def __init__(self, options: WorkerOptions, sessions: SessionTable) -> None:
        self._options = options
        self._sessions = sessions
        self._tokens_max = options.resend_tokens_max
        self._step_id = 0
        self.tokens_resent = 0

    def deliver(
        self, emitted: Iterable[TokenEmitted], *, step_id: int, now_ns: int, cause_id: str
    ) -> list[SendTokens]:
        """Take in a step's tokens and send them. Tokens of ended sessions are nobody's."""
        self._step_id = step_id
        entries: dict[str, list[SessionTokens]] = {}
        for token in emitted:
            session = self._sessions.of_sequence(token.sequence_id)
            if session is None:
                continue
            session.append(token)
            if session.finish_reason is not None:
                session.finished_at_ns = now_ns
            if session.resend_at_ns is None:
                session.resend_at_ns = now_ns + session.resend_delay_ns
            tokens = session.tokens_between(token.index, token.index + 1)
            entries.setdefault(session.router_id, []).append(tokens)
        return self._pack(entries, cause_id=cause_id)

    def acknowledge(self, session: HeldSession, receipt: TokenReceipt, *, now_ns: int) -> bool:
        """Note what is journaled; return whether the receipt said something new."""
        # A router cannot have journaled what was never sent: such an index counts for nothing.
        next_index = receipt.next_index
        if not session.acknowledged_index < next_index <= len(session.token_ids):
            return False
        session.acknowledged_index = next_index
        session.resend_delay_ns = self._options.resend_after_ns
        session.resend_at_ns = None
        if session.is_unacknowledged:
            session.resend_at_ns = now_ns + session.resend_delay_ns
        return True

    def send_again(
        self, sessions: Iterable[HeldSession], *, now_ns: int, cause_id: str
    ) -> list[SendTokens]:
        """Send what these sessions' routers lack, as far as one repetition goes."""
        entries: dict[str, list[SessionTokens]] = {}
        for session in sessions:
            if not session.is_unacknowledged:
                continue
            first = session.acknowledged_index
            end = self._repetition_end(session)
            session.resend_at_ns = now_ns + session.resend_delay_ns
            self.tokens_resent += end - first
            tokens = session.tokens_between(first, end)
            entries.setdefault(session.router_id, []).append(tokens)
        return self._pack(entries, cause_id=cause_id)

    def send_overdue(self, *, now_ns: int, cause_id: str) -> list[SendTokens]:
        """Send again what was not acknowledged in time, and wait longer for the answer to that."""
        overdue = [
            session
            for session in self._sessions
            if session.resend_at_ns is not None and session.resend_at_ns <= now_ns
        ]
        for session in overdue:
            session.resend_delay_ns = min(
                2 * session.resend_delay_ns, self._options.resend_after_ns_max
            )
        return self.send_again(overdue, now_ns=now_ns, cause_id=cause_id)

    def _repetition_end(self, session: HeldSession) -> int:
        """Where one repetition stops: at its bound of tokens, or of bytes whatever the texts."""
        first = session.acknowledged_index
        entry_bytes = ENTRY_BYTES
        for index in range(first, min(len(session.token_ids), first + self._tokens_max)):
            entry_bytes += TOKEN_BYTES + CHARACTER_BYTES * len(session.text_at(index))
            entry_bytes += _logprobs_bytes_at_most(session.logprobs_at(index))
            if entry_bytes > self._options.message_bytes_max and index > first:
                return index
        return min(len(session.token_ids), first + self._tokens_max)

    def _pack(self, entries: dict[str, list[SessionTokens]], *, cause_id: str) -> list[SendTokens]:
        commands = []
        for router_id in sorted(entries):
            for batch in _batches(entries[router_id], self._options.message_bytes_max):
                step = TokenStep(
                    worker_id=self._options.worker_id, step_id=self._step_id, entries=tuple(batch)
                )
                commands.append(SendTokens(router_id=router_id, step=step, cause_id=cause_id))
        return commands


def _batches(entries: Iterable[SessionTokens], bytes_max: int) -> Iterable[list[SessionTokens]]:
    batch: list[SessionTokens] = []
    batch_bytes = 0
    for entry in entries:
        entry_bytes = _bytes_at_most(entry)
        if batch and batch_bytes + entry_bytes > bytes_max:
            yield batch
            batch, batch_bytes = [], 0
        batch.append(entry)
        batch_bytes += entry_bytes
    if batch:
        yield batch


def _bytes_at_most(entry: SessionTokens) -> int:
    characters = sum(map(len, entry.texts))
    texts_bytes = TOKEN_BYTES * len(entry.texts) + CHARACTER_BYTES * characters
    return ENTRY_BYTES + texts_bytes + _logprobs_bytes_at_most(entry.logprobs)


def _logprobs_bytes_at_most(logprobs: Iterable[TokenLogprobs]) -> int:
    return sum(
        SCORES_BYTES
        + sum(SCORE_BYTES + CHARACTER_BYTES * len(s.text) for s in (item.chosen, *item.best))
        + _logprobs_bytes_at_most(item.prompt)
        for item in logprobs
    )
