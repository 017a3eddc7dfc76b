"""Asks a model multiple-choice questions in one batch: `python -m examples.offline_benchmark`.

Each answer is held to one of the letters by a JSON schema, so that every answer counts. The report
gives the accuracy with its 95 % interval, by subject and over all, and what guessing would reach.
"""

import argparse
import json
import math
import os
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai

from examples.batch_answers import BatchAnswers, BatchFailed, answers_of, text_of

QUESTIONS = Path(__file__).with_name("questions.jsonl")
LETTERS = "ABCDEFGH"
Z_95 = 1.96


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One question; `answer` is the index of the right choice."""

    question_id: str
    subject: str
    question: str
    choices: tuple[str, ...]
    answer: int

    def request(self, model: str) -> dict[str, Any]:
        """Return the question as a chat request whose answer can only be a letter."""
        letters = list(LETTERS[: len(self.choices)])
        shown = "\n".join(f"{letter}. {c}" for letter, c in zip(letters, self.choices, strict=True))
        return {
            "model": model,
            "messages": [
                {
                    "role": "user",
                    "content": f"{self.question}\n{shown}\nAnswer with the letter alone.",
                }
            ],
            "temperature": 0,
            "max_tokens": 16,
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "letter", "schema": {"enum": letters}},
            },
        }

    def is_right(self, text: str) -> bool:
        """Judge an answer; from a server that does not hold it to JSON, it may be anything."""
        try:
            return bool(json.loads(text) == LETTERS[self.answer])
        except ValueError:
            return False


@dataclass(slots=True, kw_only=True)
class Score:
    """Of some questions."""

    asked: int = 0
    right: int = 0
    failed: int = 0
    guessed: float = 0.0
    """What guessing is expected to get right."""

    def interval(self) -> tuple[float, float]:
        """Return the 95 % interval of the accuracy (Wilson)."""
        n, p, z = self.asked, self.right / self.asked, Z_95
        middle = (p + z * z / (2 * n)) / (1 + z * z / n)
        half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        return max(0.0, middle - half), min(1.0, middle + half)

    def row(self, name: str) -> str:
        """Return a line of the report."""
        low, high = self.interval()
        return (
            f"{name:<20} {self.right:>5} of {self.asked:<5} {self.right / self.asked:>7.1%}"
            f"   {low:.1%} to {high:.1%}   {self.guessed / self.asked:>6.1%}   {self.failed:>6}"
        )


def read_questions(file: Path) -> list[Question]:
    """Return the questions of a JSONL file. Raises: ValueError that names the line."""
    questions = []
    for number, line in enumerate(file.read_text().splitlines(), start=1):
        try:
            row = json.loads(line)
            question = Question(
                question_id=f"q{number}",
                subject=row["subject"],
                question=row["question"],
                choices=tuple(row["choices"]),
                answer=int(row["answer"]),
            )
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{file.name}, line {number}: {error!r}") from None
        if not 2 <= len(question.choices) <= len(LETTERS):
            raise ValueError(f"{file.name}, line {number}: give 2 to {len(LETTERS)} choices")
        if not 0 <= question.answer < len(question.choices):
            raise ValueError(f"{file.name}, line {number}: the answer is none of the choices")
        questions.append(question)
    return questions


def scores_of(questions: Sequence[Question], answers: BatchAnswers) -> dict[str, Score]:
    """Return the scores by subject, and of all under "all". A failed question is not right."""
    scores: dict[str, Score] = defaultdict(Score)
    for question in questions:
        body = answers.answered.get(question.question_id)
        for score in (scores[question.subject], scores["all"]):
            score.asked += 1
            score.guessed += 1 / len(question.choices)
            if body is None:
                score.failed += 1
            elif question.is_right(text_of(body)):
                score.right += 1
    return scores


def report(scores: Mapping[str, Score]) -> str:
    """Return the table, all subjects last."""
    subjects = sorted(name for name in scores if name != "all")
    head = f"{'subject':<20} {'right':<14} accuracy   95 % interval    guessing   failed"
    return "\n".join([head, *(scores[name].row(name) for name in [*subjects, "all"])])


def main(arguments: Sequence[str]) -> int:
    """Print the report; return 1 if a question has no answer."""
    parser = argparse.ArgumentParser(prog="offline_benchmark", description=__doc__)
    parser.add_argument("questions", type=Path, nargs="?", default=QUESTIONS)
    parser.add_argument("--url", default="http://127.0.0.1:8000/v1")
    parser.add_argument("--model", default="tide-tiny")
    parser.add_argument("--window", default="24h", help="time to do it in, as 30m or 24h")
    options = parser.parse_args(arguments)
    try:
        questions = read_questions(options.questions)
        requests = {q.question_id: q.request(options.model) for q in questions}
        with openai.OpenAI(
            base_url=options.url, api_key=os.environ.get("TIDESERVE_API_KEY", "none")
        ) as client:
            answers = answers_of(client, requests, window=options.window)
    except (OSError, ValueError, openai.APIError, BatchFailed) as error:
        print(f"offline_benchmark: {error}", file=sys.stderr)
        return 1
    print(report(scores_of(questions, answers)))
    for question_id, reason in sorted(answers.failed.items()):
        print(f"{question_id}: {reason}", file=sys.stderr)
    return 1 if answers.failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
