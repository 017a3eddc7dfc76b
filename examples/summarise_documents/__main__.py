"""Summarises every text of a folder: `python -m examples.summarise_documents FOLDER`.

A text that is longer than one prompt may be is cut into parts. The parts of all texts are
summarised in one batch, then what comes of them is joined and summarised again, until each text has
one summary. A part that fails takes its text with it and nothing else.
"""

import argparse
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import openai

from examples.batch_answers import BatchFailed, answers_of, text_of

INSTRUCTION = "Summarise this text in a few sentences."
ROUNDS_MAX = 8


def summaries_of(
    client: openai.OpenAI, texts: Mapping[str, str], options: argparse.Namespace
) -> tuple[dict[str, str], dict[str, str]]:
    """Return the summaries by name, and by name why there is none."""
    open_texts, done, failed = dict(texts), {}, {}
    for round_number in range(ROUNDS_MAX):
        parts = {name: parts_of(text, options.part_characters) for name, text in open_texts.items()}
        requests = {
            f"{number}-{index}": {
                "model": options.model,
                "messages": [{"role": "user", "content": f"{INSTRUCTION}\n\n{part}"}],
                "max_tokens": options.max_tokens,
                "temperature": 0,
            }
            for number, name in enumerate(parts)
            for index, part in enumerate(parts[name])
        }
        print(f"round {round_number + 1}: {len(parts)} texts in {len(requests)} parts", flush=True)
        answers = answers_of(client, requests, window=options.window)
        open_texts = {}
        for number, name in enumerate(parts):
            ids = [f"{number}-{index}" for index in range(len(parts[name]))]
            wrong = [answers.failed[part_id] for part_id in ids if part_id in answers.failed]
            if wrong:
                failed[name] = wrong[0]
                continue
            summary = "\n".join(text_of(answers.answered[part_id]).strip() for part_id in ids)
            if len(ids) == 1:
                done[name] = summary
            else:
                open_texts[name] = summary
        if not open_texts:
            return done, failed
    return done, failed | dict.fromkeys(open_texts, "its summaries do not get shorter")


def parts_of(text: str, characters_max: int) -> list[str]:
    """Cut at the ends of paragraphs where there are any, else where the room ends."""
    return list(_parts(text.strip(), characters_max)) or [""]


def _parts(rest: str, characters_max: int) -> Iterator[str]:
    while rest:
        end = len(rest)
        if end > characters_max:
            paragraph_end = rest.rfind("\n\n", 1, characters_max)
            end = paragraph_end if paragraph_end > 0 else characters_max
        yield rest[:end].strip()
        rest = rest[end:].strip()


def main(arguments: Sequence[str]) -> int:
    """Write NAME.summary.txt for every NAME.txt; return 1 if any has none."""
    parser = argparse.ArgumentParser(prog="summarise_documents", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--into", type=Path, default=Path("summaries"))
    parser.add_argument("--url", default="http://127.0.0.1:8000/v1")
    parser.add_argument("--model", default="tide-tiny")
    parser.add_argument("--window", default="24h", help="time to do it in, as 30m or 24h")
    parser.add_argument("--max-tokens", type=int, default=128, help="of one summary")
    parser.add_argument("--part-characters", type=int, default=2000, help="of one prompt")
    options = parser.parse_args(arguments)
    texts = {path.stem: path.read_text() for path in sorted(options.folder.glob("*.txt"))}
    if not texts:
        parser.error(f"{options.folder} holds no .txt files")
    try:
        with openai.OpenAI(
            base_url=options.url, api_key=os.environ.get("TIDESERVE_API_KEY", "none")
        ) as client:
            summaries, failed = summaries_of(client, texts, options)
    except (openai.APIError, BatchFailed) as error:
        print(f"summarise_documents: {error}", file=sys.stderr)
        return 1
    options.into.mkdir(parents=True, exist_ok=True)
    for name, summary in summaries.items():
        (options.into / f"{name}.summary.txt").write_text(summary + "\n")
    for name, reason in failed.items():
        print(f"{name}: {reason}", file=sys.stderr)
    print(f"{len(summaries)} of {len(texts)} texts summarised into {options.into}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
