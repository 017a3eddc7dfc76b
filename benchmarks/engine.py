"""Output tokens per second of this engine beside transformers' own, interleaved in one process.

    python -m benchmarks.engine --json FILE

A random llama of 100M parameters, greedy, prompts of 128 tokens and 64 new ones, one thread. The
engines take turns on the same prompts, so that a noisy machine disturbs all alike; a row is the
median over the turns, and `ratio_to_generate` the median of the ratios within a turn. No prompt
comes twice, so that no prefix cache helps.

vLLM takes part with `--peers-python`, the interpreter of an environment of its own, because its
packages exclude ours:

    make peers
    python -m benchmarks.engine --batch 32 --peers-python .venv-peers/bin/python --json FILE

What bounds it on a CPU: a decode step of one sequence reads every weight once, 351 MB in fp32. One
core of an AMX Xeon reads 16 GB/s at best, so no engine passes 64 / (0.16 s + 64 * 22 ms) = 41 tok/s
there; MKL, which transformers uses, is near that bound, so less is to be won than on AMD, where it
is not. A step of 32 costs at least 62 ms in the linears (28 of reading, 34 of multiplying).
"""

import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    ContinuousBatchingConfig,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
)

from benchmarks.peer import VllmPeer
from benchmarks.provenance import provenance, record_parser, write_record
from libs.engine.batch_run import run_to_completion
from libs.engine.loading import EngineOptions, load_engine
from libs.engine.requests import SamplingOptions, SequenceRequest, StopOptions
from libs.engine.scheduler import Scheduler
from libs.kernel.rng import Rng
from libs.kernel.units import NS_PER_S

MODEL_NAME: Final = "random-llama-100m"
VOCABULARY: Final = 16_000
PROMPT_TOKENS: Final = 128
OUTPUT_TOKENS: Final = 64

Prompts = list[tuple[int, ...]]
Engine = Callable[[Prompts], list[list[int]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchmarkOptions:
    """What to measure."""

    dtypes: tuple[str, ...] = ("float32",)
    batches: tuple[int, ...] = (1, 32)
    engines: tuple[str, ...] = (
        "tideserve",
        "transformers_generate",
        "transformers_generate_batch",
    )
    pairs: int = 7
    """Turns; each runs every engine once."""
    seed: int = 7
    threads: int = 1
    peers_python: str | None = None
    """Interpreter of an environment with vLLM; needed for the engine vllm."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineRow:
    """One line of the table."""

    engine: str
    model: str
    dtype: str
    batch: int
    prompt_tokens: int
    output_tokens: int
    """Per sequence."""
    output_tok_s: float
    """Of the whole batch, prefill included: median over the turns."""
    output_tok_s_all: tuple[float, ...]
    ratio_to_generate: float | None
    """Median over the turns of this engine's speed by that of transformers_generate."""
    output_tok_cpu_s: float | None
    """Per second of processor time, which a neighbour on the cores disturbs less; None for an
    engine in another process."""
    ratio_to_generate_cpu: float | None
    ratio_to_vllm: float | None
    """Likewise, by the speed of vllm; None without it."""


def measure(options: BenchmarkOptions, *, report: Callable[[str], None]) -> dict[str, object]:
    """Run the benchmark; returns the rows as they are written as JSON."""
    torch.set_num_threads(options.threads)
    rows: list[EngineRow] = []
    with tempfile.TemporaryDirectory() as folder:
        save_random_llama(Path(folder), seed=options.seed)
        for dtype in options.dtypes:
            with ExitStack() as peers:
                engines = _engines(Path(folder), dtype=dtype, options=options, peers=peers)
                for batch in options.batches:
                    rows += _measure_batch(
                        engines, dtype=dtype, batch=batch, options=options, report=report
                    )
    return {"rows": [asdict(row) for row in rows]}


def save_random_llama(folder: Path, *, seed: int) -> None:
    """Write a llama of 100M parameters and a tokenizer that can spell its tokens."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        hidden_size=768,
        intermediate_size=2048,
        num_hidden_layers=12,
        num_attention_heads=12,
        num_key_value_heads=4,
        vocab_size=VOCABULARY,
        max_position_embeddings=2048,
        bos_token_id=None,
        eos_token_id=None,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    vocabulary = {character: i for i, character in enumerate(pre_tokenizers.ByteLevel.alphabet())}
    for token_id in range(len(vocabulary), VOCABULARY):
        vocabulary[f"w{token_id}"] = token_id
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.decoder = decoders.ByteLevel()
    wrapped = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer)  # type: ignore[no-untyped-call]
    wrapped.save_pretrained(folder)


def _engines(
    folder: Path, *, dtype: str, options: BenchmarkOptions, peers: ExitStack
) -> dict[str, Engine]:
    engines: dict[str, Engine] = {}
    reference = LlamaForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype))
    for name in options.engines:
        match name:
            case "tideserve":
                engines[name] = _tideserve(folder, dtype=dtype)
            case "transformers_generate":
                engines[name] = _transformers_generate(reference)
            case "transformers_generate_batch":
                engines[name] = _transformers_generate_batch(reference)
            case "vllm":
                assert options.peers_python is not None
                peer = VllmPeer(options.peers_python, folder, dtype=dtype, threads=options.threads)
                engines[name] = peers.enter_context(peer).generate
            case _:
                raise ValueError(f"no engine is called {name}")
    return engines


def _tideserve(folder: Path, *, dtype: str) -> Engine:
    engine = load_engine(str(folder), options=EngineOptions(dtype=dtype))  # type: ignore[arg-type]
    scheduler = Scheduler(engine.scheduler_options)

    def run(prompts: Prompts) -> list[list[int]]:
        requests = [
            SequenceRequest(
                sequence_id=f"s{index}",
                prompt_token_ids=prompt,
                sampling=SamplingOptions(),
                stop=StopOptions(max_tokens=OUTPUT_TOKENS, ignore_eos=True),
            )
            for index, prompt in enumerate(prompts)
        ]
        emitted = run_to_completion(scheduler, engine.runner, requests)
        return [[token.token_id for token in emitted[r.sequence_id]] for r in requests]

    return run


def _transformers_generate(model: LlamaForCausalLM) -> Engine:
    def run(prompts: Prompts) -> list[list[int]]:
        token_ids = torch.tensor(prompts)
        output = model.generate(  # type: ignore[misc]
            token_ids,
            attention_mask=torch.ones_like(token_ids),
            max_new_tokens=OUTPUT_TOKENS,
            do_sample=False,
            pad_token_id=0,
        )
        answers: list[list[int]] = output[:, token_ids.shape[1] :].tolist()
        return answers

    return run


def _transformers_generate_batch(model: LlamaForCausalLM) -> Engine:
    # -1 is how its scheduler spells "no end-of-sequence token".
    config = GenerationConfig(  # type: ignore[no-untyped-call]
        max_new_tokens=OUTPUT_TOKENS, do_sample=False, eos_token_id=-1, pad_token_id=0
    )
    # Left to itself it would take nine tenths of the machine's memory for KV. One page holds
    # one of these sequences.
    batching = ContinuousBatchingConfig(num_blocks=64, max_batch_tokens=2048)

    def run(prompts: Prompts) -> list[list[int]]:
        before = model.config._attn_implementation
        outputs = model.generate_batch(
            [list(prompt) for prompt in prompts],
            generation_config=config,
            continuous_batching_config=batching,
        )
        # It leaves its paged attention set, which would slow down `generate` after it.
        model.set_attn_implementation(before)
        failed = [output.error for output in outputs.values() if output.error is not None]
        if failed or len(outputs) != len(prompts):
            raise RuntimeError(f"generate_batch failed: {failed[:1]}")
        answers = sorted(outputs.items(), key=lambda item: int(item[0].split("_")[-1]))
        return [list(output.generated_tokens) for _, output in answers]

    return run


def _measure_batch(
    engines: dict[str, Engine],
    *,
    dtype: str,
    batch: int,
    options: BenchmarkOptions,
    report: Callable[[str], None],
) -> list[EngineRow]:
    rng = Rng(options.seed).child(f"prompts/{dtype}/{batch}")
    turns: dict[str, list[_Turn]] = {name: [] for name in engines}
    warm_up = _prompts(rng, sequences=min(batch, 2))
    for run in engines.values():
        run(warm_up)
    for number in range(options.pairs):
        prompts = _prompts(rng, sequences=batch)
        names = list(engines)
        # Whoever is first meets other caches than whoever is last: the order rotates.
        for name in names[number % len(names) :] + names[: number % len(names)]:
            turn = _take_turn(engines[name], prompts)
            turns[name].append(turn)
            report(f"{dtype} batch {batch} turn {number + 1}: {name} {turn.tok_s:.1f} tok/s")
    return [_row(name, turns, dtype=dtype, batch=batch) for name in turns]


@dataclass(frozen=True, slots=True)
class _Turn:
    tok_s: float
    tok_cpu_s: float


def _row(name: str, turns_of: Mapping[str, list[_Turn]], *, dtype: str, batch: int) -> EngineRow:
    turns = turns_of[name]
    pairs = list(zip(turns, turns_of.get("transformers_generate", ()), strict=False))
    vllm_pairs = list(zip(turns, turns_of.get("vllm", ()), strict=False))
    is_here = name != "vllm"
    return EngineRow(
        engine=name,
        model=MODEL_NAME,
        dtype=dtype,
        batch=batch,
        prompt_tokens=PROMPT_TOKENS,
        output_tokens=OUTPUT_TOKENS,
        output_tok_s=round(statistics.median(turn.tok_s for turn in turns), 2),
        output_tok_s_all=tuple(round(turn.tok_s, 2) for turn in turns),
        ratio_to_generate=_median_or_none([turn.tok_s / other.tok_s for turn, other in pairs]),
        output_tok_cpu_s=(
            round(statistics.median(turn.tok_cpu_s for turn in turns), 2) if is_here else None
        ),
        ratio_to_generate_cpu=_median_or_none(
            [turn.tok_cpu_s / other.tok_cpu_s for turn, other in pairs if is_here]
        ),
        ratio_to_vllm=_median_or_none([turn.tok_s / other.tok_s for turn, other in vllm_pairs]),
    )


def _prompts(rng: Rng, *, sequences: int) -> Prompts:
    return [
        tuple(rng.randrange(1, VOCABULARY) for _ in range(PROMPT_TOKENS)) for _ in range(sequences)
    ]


def _take_turn(run: Engine, prompts: Prompts) -> _Turn:
    cpu_started_at_ns = time.process_time_ns()
    started_at_ns = time.perf_counter_ns()
    answers = run(prompts)
    elapsed_ns = time.perf_counter_ns() - started_at_ns
    cpu_ns = time.process_time_ns() - cpu_started_at_ns
    tokens = sum(len(answer) for answer in answers)
    if tokens != OUTPUT_TOKENS * len(prompts):
        raise RuntimeError(f"{tokens} tokens came out of {len(prompts)} prompts")
    return _Turn(tokens * NS_PER_S / elapsed_ns, tokens * NS_PER_S / cpu_ns)


def _median_or_none(ratios: list[float]) -> float | None:
    return round(statistics.median(ratios), 3) if ratios else None


def _record(options: BenchmarkOptions) -> dict[str, object]:
    return {
        **provenance("benchmarks.engine"),
        "options": asdict(options),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print each turn to stderr, and write the JSON record."""
    parser = record_parser(__doc__)
    parser.add_argument("--pairs", type=int, default=BenchmarkOptions().pairs)
    parser.add_argument("--seed", type=int, default=BenchmarkOptions().seed)
    parser.add_argument("--batch", type=int, action="append", help="repeatable; default: 1, 32")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), action="append")
    parser.add_argument("--engine", choices=BenchmarkOptions().engines, action="append")
    parser.add_argument("--peers-python", help="add vLLM, from this interpreter's environment")
    given = parser.parse_args(arguments)
    peers = () if given.peers_python is None else ("vllm",)
    options = BenchmarkOptions(
        dtypes=tuple(given.dtype or BenchmarkOptions().dtypes),
        batches=tuple(given.batch or BenchmarkOptions().batches),
        engines=(*(given.engine or BenchmarkOptions().engines), *peers),
        peers_python=given.peers_python,
        pairs=given.pairs,
        seed=given.seed,
    )
    result = measure(options, report=lambda line: print(line, file=sys.stderr, flush=True))
    result["record"] = _record(options)
    write_record(result, given.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
