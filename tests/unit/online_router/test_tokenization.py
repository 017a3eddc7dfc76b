"""The bundled model's tokenizer: what submissions and questions about text become."""

from collections.abc import Callable
from pathlib import Path

import pytest

from libs.contracts.online import ChatMessage, RejectReason, SubmitRequest
from libs.contracts.text import (
    DetokenizeIds,
    IdsDetokenized,
    TextRejected,
    TextTokenized,
    TokenizeText,
)
from services.online_router.commands import Tokenize
from services.online_router.events import PromptTokenized
from services.online_router.tokenization import Tokenization, load_tokenization

MODEL = Path(__file__).resolve().parents[3] / "models" / "tide-tiny"
HELLO = (ChatMessage(role="user", content="What does str.split do?"),)
TOOL = {"type": "function", "function": {"name": "tide_table", "description": "tides"}}
TEMPLATE = (
    "{% if tools %}{% for tool in tools %}{{ tool.function.name }}: {% endfor %}{% endif %}"
    "{% for message in messages %}{{ message.content }}{% endfor %}"
    "{% if add_generation_prompt %} ->{% endif %}"
)


@pytest.fixture(scope="module")
def tokenization() -> Tokenization:
    return load_tokenization((str(MODEL),))


def ids_of_submission(tokenization: Tokenization, **fields: object) -> tuple[int, ...]:
    submission = SubmitRequest.model_validate({"request_id": "r", **fields})
    outcome = tokenization.run(
        Tokenize(op_id="1", alias="tide-tiny", submission=submission, cause_id="r")
    )
    assert isinstance(outcome, PromptTokenized)
    return outcome.prompt_token_ids


def ids_of(tokenization: Tokenization, question: TokenizeText) -> tuple[int, ...]:
    answer = tokenization.answer("tide-tiny", question)
    assert isinstance(answer, TextTokenized), answer
    return answer.token_ids


def test_a_question_gives_the_ids_that_a_submission_gets(tokenization: Tokenization) -> None:
    asked = ids_of(tokenization, TokenizeText(prompt="The tide ≈ 🌊"))
    assert asked == ids_of_submission(tokenization, prompt="The tide ≈ 🌊")
    asked = ids_of(tokenization, TokenizeText(messages=HELLO))
    assert asked == ids_of_submission(tokenization, messages=HELLO)


def test_text_survives_tokens_and_back(tokenization: Tokenization) -> None:
    text = "The tide comes in, ≈ twice a day 🌊"
    token_ids = ids_of(tokenization, TokenizeText(prompt=text, add_special_tokens=False))
    answer = tokenization.answer("tide-tiny", DetokenizeIds(token_ids=token_ids))
    assert answer == IdsDetokenized(text=text)


def test_each_token_is_shown_as_the_vocabulary_has_it(tokenization: Tokenization) -> None:
    answer = tokenization.answer("tide-tiny", TokenizeText(prompt="tide", with_token_texts=True))
    assert isinstance(answer, TextTokenized)
    assert len(answer.token_texts) == len(answer.token_ids)


def test_without_the_generation_prompt_the_ids_are_fewer(tokenization: Tokenization) -> None:
    whole = ids_of(tokenization, TokenizeText(messages=HELLO))
    bare = ids_of(tokenization, TokenizeText(messages=HELLO, add_generation_prompt=False))
    assert whole[: len(bare)] == bare
    assert len(bare) < len(whole)


@pytest.fixture
def with_template() -> Callable[[str | None], Tokenization]:
    def build(template: str | None) -> Tokenization:
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(MODEL)
        tokenizer.chat_template = template
        return Tokenization({"tide-tiny": tokenizer})

    return build


def test_tools_reach_the_template(with_template: Callable[[str | None], Tokenization]) -> None:
    tokenization = with_template(TEMPLATE)
    token_ids = ids_of_submission(tokenization, messages=HELLO, tools=(TOOL,))
    text = tokenization.answer("tide-tiny", DetokenizeIds(token_ids=token_ids))
    assert text == IdsDetokenized(text="tide_table: What does str.split do? ->")
    asked = ids_of(tokenization, TokenizeText(messages=HELLO, tools=(TOOL,)))
    assert asked == token_ids


@pytest.mark.parametrize("template", [None, "{{ raise_exception('no') }}", "{{ messages[9].x }}"])
def test_a_template_that_fails_is_a_refusal(
    with_template: Callable[[str | None], Tokenization], template: str | None
) -> None:
    answer = with_template(template).answer("tide-tiny", TokenizeText(messages=HELLO))
    assert isinstance(answer, TextRejected)
    assert answer.reason is RejectReason.INVALID


def test_ids_beyond_the_vocabulary_and_unknown_models_are_refused(
    tokenization: Tokenization,
) -> None:
    answer = tokenization.answer("tide-tiny", DetokenizeIds(token_ids=(5, 10**6)))
    assert isinstance(answer, TextRejected)
    assert (answer.reason, answer.parameter) == (RejectReason.INVALID, "token_ids")
    answer = tokenization.answer("gpt-9", DetokenizeIds(token_ids=(5,)))
    assert isinstance(answer, TextRejected)
    assert answer.reason is RejectReason.MODEL_NOT_FOUND


def test_a_template_sees_earlier_calls_with_their_arguments_as_an_object() -> None:
    loaded = load_tokenization((str(MODEL),))
    tokenizer = loaded._tokenizers["tide-tiny"]
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.content }}"
        "{% for c in m.tool_calls or [] %}{{ c.function.arguments.port }}{% endfor %}"
        "{{ m.tool_call_id or '' }};{% endfor %}"
    )
    called = {"function": {"name": "tide_table", "arguments": '{"port": "Brest"}'}}
    broken = {"function": {"name": "tide_table", "arguments": "{"}}
    messages = (
        ChatMessage(role="assistant", content="", tool_calls=(called, broken)),
        ChatMessage(role="tool", content="noon", tool_call_id="1"),
    )
    token_ids = ids_of(loaded, TokenizeText(messages=messages))
    assert tokenizer.decode(token_ids) == "Brest;noon1;"
