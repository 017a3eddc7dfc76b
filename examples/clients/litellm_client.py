"""LiteLLM: an answer whole and streamed, and an error as its own; exit code 1 if anything differs.

.venv-clients/bin/python examples/clients/litellm_client.py http://127.0.0.1:8000/v1 tide-tiny
"""

import sys

import litellm


def main(base_url: str, model: str) -> None:
    """Ask in each way, print the answer, and compare."""
    asked = {
        "model": f"openai/{model}",
        "api_base": base_url,
        "api_key": "none",
        "messages": [{"role": "user", "content": "What does str.split do?"}],
        "temperature": 0,
    }
    whole = litellm.completion(**asked).choices[0].message.content
    stream = litellm.completion(**asked, stream=True)
    streamed = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
    print(whole)
    if not whole or streamed != whole:
        sys.exit("the streamed answer differs")
    try:
        litellm.completion(**{**asked, "model": "openai/no-such-model"}, num_retries=0)
    except litellm.NotFoundError:
        return
    sys.exit("an unknown model was not refused as one")


if __name__ == "__main__":
    main(*sys.argv[1:])
