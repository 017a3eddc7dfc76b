"""Makes one position of a replica ready to run: its KV, its decoder, its runner."""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from transformers import PreTrainedTokenizerBase

from libs.engine.attention import KvShape, PagedAttention
from libs.engine.decoder_builder import build_decoder
from libs.engine.grammar import GrammarVocabulary
from libs.engine.loading import (
    EngineOptions,
    blocks_useful,
    engine_device,
    engine_dtype,
    make_runner,
    read_grammars,
    resolve_model_folder,
    scheduler_options_for,
)
from libs.engine.model_config import ModelConfig, read_model_config
from libs.engine.parallel.group import ReplicaGroup
from libs.engine.parallel.micro_batches import MICRO_BATCH_TOKENS_MIN
from libs.engine.parallel.position import Position
from libs.engine.parallel.stage_pass import MemberRunner, StagePass
from libs.engine.parallel.weight_store import WeightStore
from libs.engine.safepoints import Safepoints
from libs.engine.scheduler import SchedulerOptions
from libs.engine.steps import StepPlan, StepResult
from libs.engine.tokenization import load_tokenizer


class StageRunner(Protocol):
    """Carries out plans at one position; all calls but `request_yield` come from one thread."""

    @property
    def safepoints(self) -> Safepoints:
        """Where steps may be given up, and what became of it."""

    def request_yield(self, step_id: int) -> None:
        """Ask this step to end at its next safepoint here. From any thread."""

    def run(self, plan: StepPlan) -> StepResult | None:
        """Run one step together with the other positions; the lead returns its result.

        Raises: ReplicaBroken if a peer is lost.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaModel:
    """What all positions of a model have in common."""

    folder: Path
    config: ModelConfig
    options: EngineOptions
    dtype: torch.dtype
    device: torch.device
    tokenizer: PreTrainedTokenizerBase
    grammars: GrammarVocabulary | None
    """None if no request may have an answer_schema."""

    def new_store(self) -> WeightStore:
        """Return an empty store for this model's weights."""
        return WeightStore(self.config, dtype=self.dtype, device=self.device)

    def kv_shape(self, position: Position, *, blocks: int) -> KvShape:
        """Return the KV that a position holds."""
        heads = position.kv_head_range(self.config)
        return KvShape(
            layers=len(position.layers),
            blocks=blocks,
            block_tokens=self.options.block_tokens,
            kv_heads=len(heads),
            head_size=self.config.head_size,
            layer_start=position.layer_start,
            kv_head_start=heads.start,
        )

    @property
    def blocks_useful(self) -> int:
        """The KV blocks of every sequence at full length; more can never be used."""
        return blocks_useful(self.options, self.config.shape)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaMember:
    """One position, ready to run once it has joined its group (alone it needs none)."""

    position: Position
    runner: StageRunner
    attention: PagedAttention
    scheduler_options: SchedulerOptions
    """For the lead's scheduler."""
    forward: StagePass

    def join(self, group: ReplicaGroup) -> None:
        """Run with these peers from now on; before the first plan, and again after a loss."""
        self.forward.join(group)


def read_replica_model(model: str, *, options: EngineOptions) -> ReplicaModel:
    """Read what is needed of a model before any weight: its config and its tokenizer.

    Raises: ModelLoadError; VariantNotSupported for a family that only transformers knows, which
    cannot be cut and is served whole by `load_engine`.
    """
    folder = resolve_model_folder(model)
    config = read_model_config(folder)
    tokenizer = load_tokenizer(folder)
    return ReplicaModel(
        folder=folder,
        config=config,
        options=options,
        dtype=engine_dtype(options, folder),
        device=engine_device(options),
        tokenizer=tokenizer,
        grammars=read_grammars(tokenizer, config.shape),
    )


def new_attention(model: ReplicaModel, position: Position, *, kv_blocks: int) -> PagedAttention:
    """Make room for a position's KV, into which blocks can be copied before it has weights.

    Raises: ModelLoadError if so few blocks cannot hold a sequence.
    """
    shape = model.config.shape
    bounds = scheduler_options_for(model.options, shape, blocks_total=kv_blocks)
    return PagedAttention(
        model.kv_shape(position, blocks=kv_blocks),
        heads=len(position.head_range(model.config)),
        windows=shape.windows,
        context_tokens_max=bounds.context_tokens_max,
        dtype=model.dtype,
        device=model.device,
    )


def build_member(
    model: ReplicaModel,
    position: Position,
    store: WeightStore,
    attention: PagedAttention,
    *,
    micro_batch_tokens_min: int = MICRO_BATCH_TOKENS_MIN,
) -> ReplicaMember:
    """Build a position whose slices are all in the store over the KV that it has already."""
    options = model.options
    decoder = build_decoder(
        store,
        position,
        row_copy_bytes_max=options.row_copy_bytes_max,
        is_packed=options.pack_linears,
    )
    forward = StagePass(decoder, attention, micro_batch_tokens_min=micro_batch_tokens_min)
    runner: StageRunner = MemberRunner(forward)
    if position.is_lead:
        runner = make_runner(forward, model.config.shape, model.tokenizer, grammars=model.grammars)
    blocks = attention.shape.blocks
    return ReplicaMember(
        position=position,
        runner=runner,
        attention=attention,
        scheduler_options=scheduler_options_for(options, model.config.shape, blocks_total=blocks),
        forward=forward,
    )
