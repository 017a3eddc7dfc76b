"""Log probabilities in both shapes, at the edges of what JSON can say."""

import json
import math

from libs.client.answers import Token
from libs.contracts.online import ScoredToken, TokenLogprobs
from libs.openai_api.logprobs import LOGPROB_MIN, chat_logprobs, completion_logprobs


def a_token(text: str, logprob: float) -> Token:
    chosen = ScoredToken(token_id=5, text=text, logprob=logprob)
    best = (ScoredToken(token_id=6, text="best", logprob=-0.5),)
    logprobs = TokenLogprobs(chosen=chosen, best=best)
    return Token(index=0, token_id=5, text=text, logprobs=logprobs)


def test_a_probability_of_zero_is_still_valid_json() -> None:
    tokens = [a_token("a", -math.inf)]
    for shown in (chat_logprobs(tokens), completion_logprobs(tokens, text_offset=0)):
        assert str(LOGPROB_MIN) in json.dumps(shown, allow_nan=False)


def test_the_chosen_token_is_among_the_best_of_a_completion() -> None:
    shown = completion_logprobs([a_token("a", -3.0)], text_offset=4)
    assert shown == {
        "tokens": ["a"],
        "token_logprobs": [-3.0],
        "top_logprobs": [{"best": -0.5, "a": -3.0}],
        "text_offset": [4],
    }
