"""Turns generated tokens into text as they come, and never takes a character back.

What a stream has emitted is a function of the tokens alone, so another worker that replays them
goes on byte for byte. Two things are held back: characters that are not certain yet (an
incomplete UTF-8 sequence), and text that may turn out to be the beginning of a stop string.

Decoding all tokens anew for each would cost time quadratic in their number; a window does:

    tokens   [ ... settled ... | window: the last settled piece | new tokens ]
    text                       decode(window) is a prefix of decode(window + new)

The last settled piece stays in the window because decoders treat the first token of a text
differently (a leading space may be stripped).
"""

from dataclasses import dataclass
from typing import Final, Protocol

REPLACEMENT: Final = "\ufffd"


class Detokenizer(Protocol):
    """What a text stream needs of a tokenizer."""

    def decode(self, token_ids: list[int]) -> str:
        """Return the text, special tokens left out, incomplete UTF-8 as U+FFFD."""

    def is_byte_fallback(self, token_id: int) -> bool:
        """Whether the token stands for one raw byte whose meaning depends on its neighbours."""


@dataclass(frozen=True, slots=True)
class TextPiece:
    """What one token adds to the text."""

    text: str
    """Certain now."""
    text_if_last: str
    """What to emit instead if no token follows: flushes what is held back."""
    is_stop_matched: bool
    """A stop string is complete; the text ends before it, and both texts are the same."""


class TextStream:
    """The text of one sequence's generated tokens."""

    def __init__(
        self, detokenizer: Detokenizer, *, stop_strings: tuple[str, ...], min_tokens: int = 0
    ) -> None:
        """Look for stop strings in what becomes certain after the first `min_tokens` tokens."""
        assert "" not in stop_strings
        self._detokenizer = detokenizer
        self._stop_strings = stop_strings
        self._tokens_unmatched = min_tokens
        """How many more tokens come before stop strings count."""
        self._window: list[int] = []
        self._settled_tokens = 0
        """Of the window, those whose text is settled; 0 only before the first."""
        self._settled_characters = 0
        """Of the window's text, those already handed to the stop matcher."""
        self._window_text = ""
        self._is_byte_run_open = False
        """The window's text ends with raw bytes that the next token may still change."""
        self._held_back = ""
        """Settled, but perhaps the beginning of a stop string."""

    def replay(self, token_ids: tuple[int, ...]) -> None:
        """Take in tokens whose text was emitted elsewhere."""
        for token_id in token_ids:
            self.push(token_id, is_stop_token=False)

    def push(self, token_id: int, *, is_stop_token: bool) -> TextPiece:
        """Take in the next token; a stop token ends the text and adds none of its own."""
        if is_stop_token:
            text = self._cut(self._held_back + self._window_text[self._settled_characters :])[0]
            return TextPiece(text, text, False)
        self._window.append(token_id)
        settled, unsettled = self._settle()
        if self._tokens_unmatched > 0:
            self._tokens_unmatched -= 1
            return TextPiece(settled, settled + unsettled, False)
        self._held_back += settled
        text, is_stop_matched = self._cut(self._held_back)
        if is_stop_matched:
            return TextPiece(text, text, True)
        text_if_last = self._cut(self._held_back + unsettled)[0]
        kept = _stop_prefix_length(self._held_back, self._stop_strings)
        text = self._held_back[: len(self._held_back) - kept]
        self._held_back = self._held_back[len(text) :]
        return TextPiece(text, text_if_last, False)

    def _settle(self) -> tuple[str, str]:
        """Return the newly certain part of the window's text and what is not certain yet."""
        window_text = self._detokenizer.decode(self._window)
        before = self._settled_characters
        # A run of byte tokens is decoded as a whole: one wrong byte changes all of it. A token
        # that adds no text (a special one) does not end the run.
        if self._detokenizer.is_byte_fallback(self._window[-1]):
            self._is_byte_run_open = True
        elif window_text != self._window_text:
            self._is_byte_run_open = False
        self._window_text = window_text
        if self._is_byte_run_open:
            return "", window_text[before:]
        if window_text.endswith(REPLACEMENT):
            # At most the last character is open: what precedes it was ended by what follows.
            self._settled_characters = max(before, len(window_text) - 1)
        else:
            self._settled_characters = len(window_text)
        settled = window_text[before : self._settled_characters]
        unsettled = window_text[self._settled_characters :]
        if settled and not unsettled:
            self._shorten_window()
        return settled, unsettled

    def _shorten_window(self) -> None:
        """Keep only the tokens since the last time; their text is settled now."""
        del self._window[: self._settled_tokens]
        self._settled_tokens = len(self._window)
        self._window_text = self._detokenizer.decode(self._window)
        self._settled_characters = len(self._window_text)

    def _cut(self, text: str) -> tuple[str, bool]:
        """Return what precedes the first stop string, and whether there is one."""
        starts = [text.find(stop_string) for stop_string in self._stop_strings]
        found = [start for start in starts if start >= 0]
        return (text[: min(found)], True) if found else (text, False)


def _stop_prefix_length(text: str, stop_strings: tuple[str, ...]) -> int:
    """Return the length of the longest end of the text that begins a stop string."""
    longest = max((len(stop_string) - 1 for stop_string in stop_strings), default=0)
    for length in range(min(longest, len(text)), 0, -1):
        if any(stop_string.startswith(text[-length:]) for stop_string in stop_strings):
            return length
    return 0
