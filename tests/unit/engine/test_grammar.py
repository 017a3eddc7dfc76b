"""Which tokens a JSON schema allows next, on a vocabulary of single bytes and a few pairs."""

import json
from collections.abc import Callable

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from libs.engine.grammar import AnswerGrammar, GrammarVocabulary
from libs.engine.logits_adjuster import LogitsAdjuster, needs_adjuster
from libs.engine.requests import SequenceRequest, StopOptions

RequestBuilder = Callable[..., SequenceRequest]
BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())
PAIRS = ['{"', '":', "}}"]
EOS = len(BYTES) + len(PAIRS)
ID_OF = {text: number for number, text in enumerate([*BYTES, *PAIRS, "<eos>"])}
POINT = json.dumps(
    {
        "type": "object",
        "properties": {"x": {"type": "integer"}},
        "required": ["x"],
        "additionalProperties": False,
    }
)


@pytest.fixture(scope="module")
def vocabulary() -> GrammarVocabulary:
    tokenizer = Tokenizer(models.BPE(vocab=ID_OF, merges=[]))
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<eos>"])
    return GrammarVocabulary(
        tokenizer.to_str(), vocabulary_size=EOS + 9, eos_token_ids=frozenset({EOS})
    )


def allowed(grammar: AnswerGrammar) -> set[str]:
    texts = [*BYTES, *PAIRS, "<eos>"]
    return {texts[token_id] for token_id, byte in enumerate(grammar.allowed_V()) if byte}


def push(grammar: AnswerGrammar, text: str) -> None:
    for character in text:
        grammar.push(ID_OF[character])


def test_only_what_the_schema_allows_may_come_next(vocabulary: GrammarVocabulary) -> None:
    grammar = vocabulary.begin(POINT)
    assert allowed(grammar) == {"{", '{"'}
    push(grammar, '{"x":')
    assert set("-0123456789") < allowed(grammar)
    assert not allowed(grammar) & set('abc"{}')
    push(grammar, "4")
    assert "}" in allowed(grammar)
    assert "}}" not in allowed(grammar)
    assert "<eos>" not in allowed(grammar), "whoever asks where it may end asks may_end"


def test_an_answer_may_end_where_it_is_whole_and_is_complete_where_nothing_fits(
    vocabulary: GrammarVocabulary,
) -> None:
    number = vocabulary.begin('{"type":"integer"}')
    assert not number.may_end
    push(number, "12")
    assert number.may_end
    assert not number.is_complete
    point = vocabulary.begin(POINT)
    push(point, '{"x":7')
    assert not point.may_end
    push(point, "}")
    assert point.may_end
    assert point.is_complete
    assert not point.is_broken


def test_a_token_against_the_schema_breaks_the_grammar_for_good(
    vocabulary: GrammarVocabulary,
) -> None:
    grammar = vocabulary.begin(POINT)
    push(grammar, "[")
    assert grammar.is_broken
    assert not grammar.is_complete
    push(grammar, "{")
    assert grammar.is_broken
    assert allowed(grammar) == set()


def test_tokens_from_elsewhere_count_as_those_from_here(vocabulary: GrammarVocabulary) -> None:
    text = '{"x":-10}'
    for length in range(len(text)):
        token_ids = [ID_OF[character] for character in text[:length]]
        resumed = vocabulary.begin(POINT, token_ids)
        whole = vocabulary.begin(POINT)
        push(whole, text[:length])
        assert resumed.allowed_V() == whole.allowed_V()
        assert resumed.may_end == whole.may_end


def test_white_space_has_a_bound(vocabulary: GrammarVocabulary) -> None:
    grammar = vocabulary.begin(POINT)
    push(grammar, "{" + "Ġ" * 64)
    assert allowed(grammar) == {'"'}


@pytest.mark.parametrize(
    ("schema", "part"),
    [
        ("{", "EOF"),
        ("[]", "object"),
        ('{"type":"nonsense"}', "nonsense"),
        ('{"type":"string","pattern":"(a"}', "unclosed"),
        ('{"if":{}}', "Unimplemented"),
        ('{"if":{},"x-guidance":{"lenient":true}}', "Unimplemented"),
        ('{"$ref":"https://example.com/schema.json"}', "registry"),
        ('{"allOf":[{"$ref":"#"}]}', "no answer"),
        ('{"enum":[]}', "Unsatisfiable"),
        ('{"type":"integer","multipleOf":828000007}', "fuel"),
        (json.dumps({"properties": {f"p{n}": {"type": "string"} for n in range(2000)}}), "size"),
        ('{"a":' * 1000 + "1" + "}" * 1000, "recursion"),
    ],
)
def test_a_schema_that_cannot_be_used_is_refused_in_words(
    vocabulary: GrammarVocabulary, schema: str, part: str
) -> None:
    refusal = vocabulary.refusal(schema)
    assert refusal is not None
    assert part in refusal
    assert "\n" not in refusal
    # A peer that sends it all the same breaks its own sequence only.
    assert vocabulary.begin(schema).is_broken or part == "no answer"


@pytest.mark.parametrize(
    "schema",
    [
        POINT,
        "{}",
        '{"$ref":"#/$defs/a","$defs":{"a":{"type":"array","items":{"$ref":"#/$defs/a"}}}}',
        json.dumps({"enum": [f"value {number}" for number in range(2000)]}),
        json.dumps({"properties": {f"p{number}": {"type": "string"} for number in range(500)}}),
        '{"type":"string","pattern":"((a{1,100}){1,100}){1,100}"}',
    ],
)
def test_a_large_but_honest_schema_is_not_refused(
    vocabulary: GrammarVocabulary, schema: str
) -> None:
    assert vocabulary.refusal(schema) is None


def adjusted(vocabulary: GrammarVocabulary, request: SequenceRequest, text: str) -> list[str]:
    """Return the texts of the tokens that stay possible after this text, the best first."""
    grammar = vocabulary.begin(str(request.answer_schema))
    push(grammar, text)
    adjuster = LogitsAdjuster(
        request,
        eos_token_ids=frozenset({EOS}),
        vocabulary_size=EOS + 1,
        device=torch.device("cpu"),
        grammar=grammar,
    )
    logits_V = torch.arange(EOS + 1, dtype=torch.float32)
    adjuster.adjust_(logits_V, output_index=len(text))
    texts = [*BYTES, *PAIRS, "<eos>"]
    return [texts[i] for i in logits_V.argsort(descending=True).tolist() if logits_V[i] > -1e30]


def test_a_stop_token_is_possible_only_where_the_answer_may_end(
    vocabulary: GrammarVocabulary, a_request: RequestBuilder
) -> None:
    request = a_request(answer_schema='{"type":"integer"}', max_tokens=9)
    assert needs_adjuster(request)
    assert "<eos>" not in adjusted(vocabulary, request, "")
    assert adjusted(vocabulary, request, "1")[0] == "<eos>"
    goes_on = a_request(
        answer_schema='{"type":"integer"}', stop=StopOptions(max_tokens=9, ignore_eos=True)
    )
    assert "<eos>" not in adjusted(vocabulary, goes_on, "1")


def test_min_tokens_gives_way_where_only_the_end_is_possible(
    vocabulary: GrammarVocabulary, a_request: RequestBuilder
) -> None:
    stop = StopOptions(max_tokens=30, min_tokens=20)
    number = a_request(answer_schema='{"type":"integer"}', stop=stop)
    assert "<eos>" not in adjusted(vocabulary, number, "1")
    point = a_request(answer_schema=POINT, stop=stop)
    assert adjusted(vocabulary, point, '{"x":7}') == ["<eos>"]
