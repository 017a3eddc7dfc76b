"""Train the bundled tiny model and write its folder.

    python -m tools.train_tiny_model --output models/tide-tiny

A llama of about 1.8 million parameters learns to recite the documentation of Python's standard
library, so that its distributions are peaked and a demo is legible. Plain PyTorch on the CPU:
fp32 training, bf16 on disk. The same seed, Python, torch and thread count give the same weights.

Theory of operation: documents are packed into rows that each begin at the start of a document.
Most steps use short rows, which is fast; every fifth uses rows of the full context from the first
step on. (Tried and failed: short rows first, long rows in a last phase. Attention had by then
learned to rely on distances under a short row; the loss rose from 0.16 to 3.5 and stayed high.)
"""

import argparse
import json
import math
import platform
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from tokenizers import Tokenizer
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from tools.tiny_corpus import Document, collect_entries, documents
from tools.tiny_small_talk import SMALL_TALK
from tools.tiny_tokenizer import (
    END_OF_TEXT,
    END_OF_TURN,
    PAD,
    POSITIONS_MAX,
    SPECIAL_TOKENS,
    render,
    save_tokenizer,
    train_tokenizer,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingOptions:
    """What a training run depends on; written into training.json beside the weights."""

    steps: int = 2000
    """Optimizer steps in all."""
    tokens_per_step: int = 2048
    """Tokens in one batch; rows per batch follow from the row length."""
    row_tokens: int = 512
    """Row length of the short steps; the others use the full context."""
    steps_per_long_step: int | None = 5
    """One step in so many trains on rows of the full context; None: no step does."""
    learning_rate: float = 3e-3
    """Peak of the cosine schedule."""
    warmup_steps: int = 80
    """Steps over which the learning rate rises linearly from zero."""
    vocabulary_size: int = 2048
    """Tokens of the byte-level BPE, special ones included."""
    seed: int = 1
    """Of the weights, the documents and their order."""
    threads: int = 1
    """torch's threads on the CPU."""

    def is_long(self, step: int) -> bool:
        """Tell whether this step trains on rows of the full context."""
        every = self.steps_per_long_step
        return every is not None and step % every == every - 1

    def learning_rate_at(self, step: int) -> float:
        """Linear warm-up, then a cosine down to zero."""
        warm = min(1.0, (step + 1) / max(1, self.warmup_steps))
        return self.learning_rate * warm * 0.5 * (1 + math.cos(math.pi * step / self.steps))


@dataclass(slots=True, kw_only=True)
class TrainingRecord:
    """What a run measured, in the order it was measured."""

    losses: list[float] = field(default_factory=list)
    """Mean cross entropy per token of each step, in nats."""
    seconds: float = 0.0
    """Wall-clock time of the loop."""


def model_shape(options: TrainingOptions) -> LlamaConfig:
    """The architecture: 4 layers, 12 query heads on 4 KV heads, tied embeddings.

    The head counts divide by 1, 2 and 4, and so do the layers, so that every small tensor or
    pipeline parallel shape can be tried on it.
    """
    return LlamaConfig(
        vocab_size=options.vocabulary_size,
        hidden_size=192,
        intermediate_size=448,
        num_hidden_layers=4,
        num_attention_heads=12,
        num_key_value_heads=4,
        head_dim=16,
        max_position_embeddings=POSITIONS_MAX,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        bos_token_id=SPECIAL_TOKENS.index(END_OF_TEXT),
        eos_token_id=[SPECIAL_TOKENS.index(END_OF_TURN), SPECIAL_TOKENS.index(END_OF_TEXT)],
        pad_token_id=SPECIAL_TOKENS.index(PAD),
    )


def packed_rows(
    stream: Iterator[Document], tokenizer: Tokenizer, *, row_tokens: int
) -> Iterator[list[int]]:
    """Yield rows of row_tokens + 1 ids, each beginning at the start of a document.

    A document that does not fit fills the row as far as it goes and begins the next row anew, so
    that no row is padded and no document is seen only in part (save one longer than a row).
    """
    width = row_tokens + 1
    row: list[int] = []
    while True:
        ids = tokenizer.encode(render(next(stream))).ids
        row += ids
        if len(row) >= width:
            is_cut = len(row) > width
            yield row[:width]
            row = ids[:width] if is_cut and len(ids) < width else []


def train(
    options: TrainingOptions, *, tokenizer: Tokenizer, stream: Iterator[Document]
) -> tuple[LlamaForCausalLM, TrainingRecord]:
    """Run the loop and return the model in fp32; prints the loss every 50 steps."""
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    model = LlamaForCausalLM(model_shape(options))
    optimizers = _optimizers(model, options)
    short = packed_rows(stream, tokenizer, row_tokens=options.row_tokens)
    long = packed_rows(stream, tokenizer, row_tokens=POSITIONS_MAX)
    record = TrainingRecord()
    started = time.monotonic()
    for step in range(options.steps):
        row_tokens = POSITIONS_MAX if options.is_long(step) else options.row_tokens
        rows = long if options.is_long(step) else short
        batch = [next(rows) for _ in range(max(1, options.tokens_per_step // row_tokens))]
        record.losses.append(_step(model, optimizers, batch, options.learning_rate_at(step)))
        record.seconds = time.monotonic() - started
        if step % 50 == 0 or step == options.steps - 1:
            left = record.seconds / (step + 1) * (options.steps - step - 1)
            recent = record.losses[-50:]
            print(
                f"step {step:5d}/{options.steps}  loss {sum(recent) / len(recent):.3f}"
                f"  {record.seconds:5.0f} s gone  {left:5.0f} s left",
                flush=True,
            )
    return model, record


def _optimizers(
    model: LlamaForCausalLM, options: TrainingOptions
) -> tuple[torch.optim.Optimizer, ...]:
    """Muon for the matrices of the layers, AdamW for the embedding and the norms."""
    layers = [p for p in model.model.layers.parameters() if p.ndim == 2]
    inside = {id(p) for p in layers}
    rest = [p for p in model.parameters() if id(p) not in inside]
    return (
        torch.optim.Muon(
            layers, lr=options.learning_rate, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"
        ),
        torch.optim.AdamW(
            rest, lr=options.learning_rate, weight_decay=0.01, betas=(0.9, 0.95), fused=True
        ),
    )


def _step(
    model: LlamaForCausalLM,
    optimizers: Sequence[torch.optim.Optimizer],
    batch: Sequence[Sequence[int]],
    learning_rate: float,
) -> float:
    rows = torch.tensor(batch)
    logits = model(input_ids=rows[:, :-1], use_cache=False).logits
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())
    torch.autograd.backward(loss)
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate
        optimizer.step()
        optimizer.zero_grad()
    return float(loss.item())


def save_model(
    model: LlamaForCausalLM,
    *,
    tokenizer: Tokenizer,
    folder: Path,
    options: TrainingOptions,
    record: TrainingRecord,
) -> None:
    """Write a folder that AutoTokenizer and AutoModelForCausalLM load; weights in bf16."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.nn.Module.to(model, torch.bfloat16)
    model.generation_config = GenerationConfig.from_model_config(model.config)
    model.save_pretrained(folder)
    save_tokenizer(tokenizer, folder)
    summary = {
        "options": asdict(options),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "parameters": sum(p.numel() for p in model.parameters()),
        "loss_last_50_steps": round(sum(record.losses[-50:]) / len(record.losses[-50:]), 4),
        "seconds": round(record.seconds),
    }
    (folder / "training.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    """Build corpus and tokenizer, train, save."""
    usual = TrainingOptions()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, help="folder to write")
    parser.add_argument("--steps", type=int, default=usual.steps)
    parser.add_argument("--seed", type=int, default=usual.seed)
    parser.add_argument("--threads", type=int, default=usual.threads)
    parser.add_argument("--learning-rate", type=float, default=usual.learning_rate)
    given = parser.parse_args()
    options = TrainingOptions(
        steps=given.steps,
        seed=given.seed,
        threads=given.threads,
        learning_rate=given.learning_rate,
    )
    entries = collect_entries()
    texts = [f"{entry.text}{entry.answer}{''.join(entry.questions[:3])}" for entry in entries]
    talk = [f"{' '.join(questions)} {answer}" for questions, answer in SMALL_TALK]
    tokenizer = train_tokenizer(texts + talk * 3, vocabulary_size=options.vocabulary_size)
    print(f"{len(entries)} entries; {tokenizer.get_vocab_size()} tokens", flush=True)
    stream = documents(entries, seed=options.seed)
    model, record = train(options, tokenizer=tokenizer, stream=stream)
    save_model(model, tokenizer=tokenizer, folder=given.output, options=options, record=record)
    print(f"wrote {given.output}")


if __name__ == "__main__":
    main()
