"""OpenAI's client for Python: one question, whole and streamed; exit code 1 if the two differ.

python examples/clients/openai_client.py http://127.0.0.1:8000/v1 tide-tiny
"""

import sys

import openai
from openai.types.chat import ChatCompletionUserMessageParam


def main(base_url: str, model: str) -> None:
    """Ask, print the answer, and compare."""
    client = openai.OpenAI(base_url=base_url, api_key="none")
    question = ChatCompletionUserMessageParam(role="user", content="What does str.split do?")
    whole = client.chat.completions.create(model=model, messages=[question], temperature=0)
    stream = client.chat.completions.create(
        model=model, messages=[question], temperature=0, stream=True
    )
    pieces = [chunk.choices[0].delta.content or "" for chunk in stream]
    print(whole.choices[0].message.content)
    if whole.choices[0].message.content != "".join(pieces):
        sys.exit("the streamed answer differs")


if __name__ == "__main__":
    main(*sys.argv[1:])
