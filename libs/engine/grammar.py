"""Holds an answer to a JSON schema: says after each token which ones may come next.

The state is a function of (schema, generated tokens), so that a sequence resumed elsewhere goes on
under the same grammar. llguidance, which does the work, counts its own steps instead of looking at
a clock; so whether a schema is too complex does not depend on the machine or on its load.

Legend: V vocabulary.
"""

from collections.abc import Sequence
from typing import Final

from llguidance import LLMatcher, LLParserLimits, LLTokenizer

LIMITS: Final = LLParserLimits(
    max_items_in_row=500,
    initial_lexer_fuel=200_000,
    step_lexer_fuel=100_000,
    step_max_items=20_000,
    max_lexer_states=10_000,
    max_grammar_size=8_000,
    verbose_errors=False,
)
"""A schema at these limits compiles in 40 ms and holds 20 MB; its masks take 10 ms. Most take a
hundredth of that. 700 properties in one object fit."""

WHITE_SPACE: Final = r"[\x20\x0A\x0D\x09]{1,64}"
"""Between the parts of an answer. Bounded, so that a model cannot go on with blanks for ever."""


def serialised(tokenizer: object) -> str | None:
    """Return what GrammarVocabulary reads; None if transformers has this tokenizer in Python."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return None if backend is None else str(backend.to_str())


class GrammarVocabulary:
    """A model's tokens, spelt out; costs half a second and 30 MB for 128,000 tokens."""

    def __init__(
        self,
        tokenizer_json: str,
        *,
        vocabulary_size: int | None = None,
        eos_token_ids: frozenset[int] = frozenset(),
    ) -> None:
        """Read a tokenizer as Hugging Face's tokenizers serialises it.

        The model's vocabulary may be the larger one. Raises: ValueError for another tokenizer.
        """
        self._tokens = LLTokenizer(
            tokenizer_json, n_vocab=vocabulary_size, eos_token=sorted(eos_token_ids) or None
        )

    def begin(self, schema: str, token_ids: Sequence[int] = ()) -> "AnswerGrammar":
        """Compile the schema and take in the tokens generated before."""
        grammar = AnswerGrammar(self._tokens, schema)
        for token_id in token_ids:
            grammar.push(token_id)
        return grammar

    def refusal(self, schema: str) -> str | None:
        """Say in one sentence why no answer can be held to this schema, or None."""
        answer = self.begin(schema)
        if answer.is_broken:
            return answer.problem
        # A schema that only refers to itself breaks here.
        return None if any(answer.allowed_V()) else "no answer can begin"


class AnswerGrammar:
    """Where one answer stands in its schema."""

    def __init__(self, tokens: LLTokenizer, schema: str) -> None:
        """Begin at the first token; broken at once if the schema cannot be compiled."""
        self._eos_token_ids = tuple(tokens.eos_tokens)
        self._no_json = ""
        grammar = ""
        try:
            # Said last, so that a schema cannot turn off by an `x-guidance` of its own what it
            # asks for.
            grammar = LLMatcher.grammar_from_json_schema(
                schema, overrides={"whitespace_pattern": WHITE_SPACE, "lenient": False}
            )
        except ValueError as error:
            self._no_json = str(error)
        self._matcher = LLMatcher(tokens, grammar, log_level=0, limits=LIMITS)

    @property
    def is_broken(self) -> bool:
        """Whether the answer left the grammar, or a step took more work than LIMITS allow."""
        return self._matcher.is_error()

    @property
    def problem(self) -> str:
        """Why the grammar is broken, in one line; empty if it is not."""
        return self._no_json or " ".join(self._matcher.get_error().split())

    @property
    def may_end(self) -> bool:
        """Whether the tokens so far are a whole answer, which further ones might still extend."""
        return self._matcher.is_accepting()

    @property
    def is_complete(self) -> bool:
        """Whether the tokens so far are a whole answer that nothing can extend."""
        return self._matcher.is_stopped() and not self.is_broken

    def push(self, token_id: int) -> None:
        """Take in the token generated next, unless it ends the sequence."""
        self._matcher.consume_token(token_id)

    def allowed_V(self) -> bytearray:
        """Return one byte per token, not 0 where the token may come next.

        Tokens that end the sequence are left out: `may_end` speaks for them. May break the grammar.
        """
        allowed_V = bytearray(self._matcher.compute_logit_bias())
        for token_id in self._eos_token_ids:
            allowed_V[token_id] = 0
        return allowed_V
