"""Runs under the interpreter that has vLLM, and imports nothing of this project.

    PYTHON vllm_process.py FOLDER DTYPE

Says `"ready"`, then answers each line of prompts, as JSON, with a line of answers.
"""

import importlib
import json
import os
import sys
from typing import Final

OUTPUT_TOKENS: Final = 64
CONTEXT_TOKENS_MAX: Final = 256
SEQUENCES_MAX: Final = 32


def main(folder: str, dtype: str) -> None:
    """Load the model and answer until stdin ends."""
    # Whatever prints, answers alone go where they are read.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    # By name: it is no dependency of this project.
    vllm = importlib.import_module("vllm")
    engine = vllm.LLM(
        model=folder,
        dtype=dtype,
        max_model_len=CONTEXT_TOKENS_MAX,
        max_num_seqs=SEQUENCES_MAX,
        enable_prefix_caching=False,
        skip_tokenizer_init=True,
    )
    greedy = vllm.SamplingParams(
        temperature=0.0, max_tokens=OUTPUT_TOKENS, ignore_eos=True, detokenize=False
    )

    def say(value: object) -> None:
        answers.write(json.dumps(value) + "\n")
        answers.flush()

    say("ready")
    for line in sys.stdin:
        prompts = [{"prompt_token_ids": prompt} for prompt in json.loads(line)]
        outputs = engine.generate(prompts, greedy, use_tqdm=False)
        say([list(output.outputs[0].token_ids) for output in outputs])


if __name__ == "__main__":
    main(*sys.argv[1:])
