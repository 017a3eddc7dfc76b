"""LangChain: an answer whole, streamed, in a batch and in a structure; exit code 1 if they differ.

.venv-clients/bin/python examples/clients/langchain_client.py http://127.0.0.1:8000/v1 tide-tiny
"""

import sys
from typing import Final

from langchain_openai import ChatOpenAI

QUESTION: Final = "What does str.split do?"
SHIP: Final = {
    "title": "Ship",
    "description": "A ship.",
    "type": "object",
    "properties": {"name": {"enum": ["Elbe", "Weser"]}},
    "required": ["name"],
    "additionalProperties": False,
}


def main(base_url: str, model: str) -> None:
    """Ask in each way, print the answer, and compare."""
    chat = ChatOpenAI(model=model, base_url=base_url, api_key="none", temperature=0)
    whole = chat.invoke(QUESTION).content
    streamed = "".join(piece.content for piece in chat.stream(QUESTION))
    both = [answer.content for answer in chat.batch([QUESTION, QUESTION])]
    print(whole)
    if not whole or {streamed, *both} != {whole}:
        sys.exit("the streamed or batched answers differ")
    ship = chat.with_structured_output(SHIP, method="json_schema").invoke("Name a ship.")
    print(ship)
    if ship not in ({"name": "Elbe"}, {"name": "Weser"}):
        sys.exit("the structured answer does not follow its schema")


if __name__ == "__main__":
    main(*sys.argv[1:])
