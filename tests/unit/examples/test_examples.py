"""The parts of the examples that decide something."""

import json
from pathlib import Path

import pytest

from examples.batch_answers import BatchAnswers
from examples.offline_benchmark.__main__ import (
    QUESTIONS,
    Question,
    Score,
    read_questions,
    report,
    scores_of,
)
from examples.summarise_documents.__main__ import parts_of


def a_question(number: int, *, subject: str = "sea", answer: int = 0) -> Question:
    return Question(
        question_id=f"q{number}",
        subject=subject,
        question="?",
        choices=("yes", "no"),
        answer=answer,
    )


def a_body(text: str) -> dict:
    return {"choices": [{"message": {"content": text}}]}


def test_a_text_is_cut_at_paragraphs_where_it_can_be_and_nothing_is_lost() -> None:
    text = "first\n\nsecond one\n\nthird"
    assert parts_of(text, 100) == [text]
    assert parts_of(text, 20) == ["first\n\nsecond one", "third"]
    assert parts_of("x" * 25, 10) == ["x" * 10, "x" * 10, "x" * 5]
    assert parts_of("  ", 10) == [""]
    assert "".join("".join(parts_of(text, 4)).split()) == "".join(text.split())


def test_a_failed_question_counts_and_is_not_right() -> None:
    questions = [a_question(1), a_question(2, answer=1), a_question(3, subject="moon")]
    answers = BatchAnswers(
        answered={"q1": a_body('"A"'), "q2": a_body('"A"')}, failed={"q3": "expired"}
    )
    scores = scores_of(questions, answers)
    assert scores["all"] == Score(asked=3, right=1, failed=1, guessed=1.5)
    assert scores["moon"] == Score(asked=1, right=0, failed=1, guessed=0.5)
    assert report(scores).splitlines()[-1].startswith("all ")


@pytest.mark.parametrize("text", ["A", '"B"', '["A"]', "", "null"])
def test_an_answer_that_is_not_the_letter_is_wrong(text: str) -> None:
    assert not a_question(1).is_right(text)


def test_the_interval_holds_the_accuracy_and_narrows() -> None:
    few, many = Score(asked=10, right=5), Score(asked=1000, right=500)
    assert few.interval() == pytest.approx((0.2366, 0.7634), abs=1e-4)
    assert few.interval()[0] < many.interval()[0] < 0.5 < many.interval()[1] < few.interval()[1]
    assert Score(asked=3, right=0).interval()[0] == 0.0


def test_the_bundled_questions_are_whole_and_their_answers_spread() -> None:
    questions = read_questions(QUESTIONS)
    assert len(questions) == 32
    by_letter = [sum(q.answer == index for q in questions) for index in range(4)]
    assert min(by_letter) >= 6, "a model that always says A must not look clever"


@pytest.mark.parametrize(
    "change", [{"choices": ["one"]}, {"answer": 2}, {"answer": -1}, {"choices": None}]
)
def test_a_wrong_question_is_named_by_its_line(tmp_path: Path, change: dict) -> None:
    good = {"subject": "s", "question": "?", "choices": ["yes", "no"], "answer": 0}
    file = tmp_path / "questions.jsonl"
    file.write_text(json.dumps(good) + "\n" + json.dumps({**good, **change}) + "\n")
    with pytest.raises(ValueError, match="line 2"):
        read_questions(file)
