"""Makes an engine of a model folder: finds the files, sizes the KV, loads the weights."""

import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, Literal

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from transformers import PreTrainedTokenizerBase

from libs.engine.attention import KvShape, PagedAttention
from libs.engine.decoder_builder import load_decoder
from libs.engine.forward import ForwardPass, StepDecoder, WholePass
from libs.engine.grammar import GrammarVocabulary, serialised
from libs.engine.model_config import (
    DecoderShape,
    ModelLoadError,
    VariantNotSupported,
    read_dtype_name,
    read_model_config,
)
from libs.engine.runner import ModelRunner
from libs.engine.scheduler import SchedulerOptions
from libs.engine.scheduling.coserve import CoserveOptions
from libs.engine.tokenization import TokenizerDetokenizer, load_tokenizer
from libs.kernel.units import MIB

HUB_ID: Final = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
HUB_FILES: Final = ("*.json", "*.safetensors", "tokenizer*", "*.model", "*.jinja")
CUDA_KV_SHARE: Final = 0.8
"""Of the memory that is free once the weights are loaded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOptions:
    """How one engine is built; the defaults suit a development machine."""

    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of weights and KV. auto: what config.json says, float16 becoming bfloat16."""
    device: str = "cpu"
    """As torch names it: cpu, cuda, cuda:1. CUDA is experimental."""
    kv_bytes_max: int | None = None
    """Memory for KV at most. None: 1 GiB on a CPU, 0.8 of the free memory on a GPU. On a CPU
    the pages are taken from the system only when first used."""
    blocks_total: int | None = None
    """KV blocks exactly, instead of kv_bytes_max."""
    block_tokens: int = 16
    """Tokens per KV block: smaller shares more prefix, larger gathers faster."""
    step_tokens_max: int = 512
    """Tokens per step: a chunk of prefill delays the decodes beside it by this much at most."""
    sequences_max: int = 64
    """Sequences running at a time."""
    context_tokens_max: int | None = None
    """Shortens the model's own context; None keeps it, as far as the KV memory holds it."""
    enable_prefix_cache: bool = True
    """Whether sequences share the KV of equal prefixes."""
    coserve: CoserveOptions = field(default_factory=CoserveOptions)
    """How online and offline sequences share the engine."""
    row_copy_bytes_max: int = 1024 * MIB
    """Weights on a CPU may be held a second time, up to this size, in a layout that makes steps
    with a single sequence about 1.2 times as fast; 0 saves the memory."""
    pack_linears: bool = True
    """On a CPU, hold linears in the layout that is fastest. A position that keeps its weights for
    peers holds them twice then; without, steps take about twice as long."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedEngine:
    """An engine ready to run: one scheduler over these options, one thread calling the runner."""

    runner: ModelRunner
    attention: PagedAttention
    """Its KV."""
    scheduler_options: SchedulerOptions
    tokenizer: PreTrainedTokenizerBase
    config: DecoderShape
    dtype: torch.dtype
    can_hold_to_schema: bool
    """Whether requests may have an answer_schema."""


def load_engine(model: str, *, options: EngineOptions) -> LoadedEngine:
    """Load a local Hugging Face folder, or a hub id: by the compact decoder if it knows the
    family, else through transformers.

    Raises: ModelLoadError, one line that names file and reason.
    """
    folder = resolve_model_folder(model)
    device = engine_device(options)
    decoder, config = _load_decoder(folder, options, device)
    dtype = decoder.dtype
    tokenizer = load_tokenizer(folder)
    grammars = read_grammars(tokenizer, config)
    kv_shape = _kv_shape(options, config, dtype=dtype, device=device)
    scheduler_options = scheduler_options_for(options, config, blocks_total=kv_shape.blocks)
    attention = PagedAttention(
        kv_shape,
        heads=config.heads,
        windows=config.windows,
        context_tokens_max=scheduler_options.context_tokens_max,
        dtype=dtype,
        device=device,
    )
    return LoadedEngine(
        runner=make_runner(WholePass(decoder, attention), config, tokenizer, grammars=grammars),
        attention=attention,
        scheduler_options=scheduler_options,
        tokenizer=tokenizer,
        config=config,
        dtype=dtype,
        can_hold_to_schema=grammars is not None,
    )


def read_grammars(
    tokenizer: PreTrainedTokenizerBase, config: DecoderShape
) -> GrammarVocabulary | None:
    """Return what answer schemas need of a model; None if its tokenizer is not one in Rust."""
    tokenizer_json = serialised(tokenizer)
    if tokenizer_json is None:
        return None
    return GrammarVocabulary(
        tokenizer_json,
        vocabulary_size=max(config.vocabulary_size, len(tokenizer)),
        eos_token_ids=config.eos_token_ids,
    )


def make_runner(
    forward: ForwardPass,
    config: DecoderShape,
    tokenizer: PreTrainedTokenizerBase,
    *,
    grammars: GrammarVocabulary | None,
) -> ModelRunner:
    """Let a forward pass be sampled from."""
    return ModelRunner(
        forward=forward,
        detokenizer=TokenizerDetokenizer(tokenizer),
        vocabulary_size=config.vocabulary_size,
        eos_token_ids=config.eos_token_ids,
        grammars=grammars,
    )


def scheduler_options_for(
    options: EngineOptions, config: DecoderShape, *, blocks_total: int
) -> SchedulerOptions:
    """Return the bounds of an engine with so many KV blocks.

    Raises: ModelLoadError if they cannot hold a sequence.
    """
    context_tokens_max = min(_context_wanted(options, config), blocks_total * options.block_tokens)
    if context_tokens_max < 2:
        raise ModelLoadError(f"{blocks_total} KV blocks cannot hold a sequence")
    return SchedulerOptions(
        step_tokens_max=options.step_tokens_max,
        sequences_max=options.sequences_max,
        block_tokens=options.block_tokens,
        blocks_total=blocks_total,
        context_tokens_max=context_tokens_max,
        eos_token_ids=config.eos_token_ids,
        enable_prefix_cache=options.enable_prefix_cache,
        layers=config.layers,
        coserve=options.coserve,
    )


def resolve_model_folder(model: str) -> Path:
    """Return the local folder of the model, downloading it if it is a hub id and no folder.

    Raises: ModelLoadError if it is neither.
    """
    folder = Path(model).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists():
        raise ModelLoadError(f"{model}: not a folder; give the folder that holds config.json")
    if HUB_ID.fullmatch(model) is None:
        raise ModelLoadError(f"{model}: no such folder")
    try:
        return Path(snapshot_download(model, allow_patterns=list(HUB_FILES)))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        raise ModelLoadError(
            f"{model}: no such folder, nor could it be had from the Hugging Face hub: {reason}"
        ) from error


def _load_decoder(
    folder: Path, options: EngineOptions, device: torch.device
) -> tuple[StepDecoder, DecoderShape]:
    try:
        config = read_model_config(folder)
    except VariantNotSupported as error:
        return _load_fallback(folder, engine_dtype(options, folder), device, why=error)
    decoder = load_decoder(
        folder,
        config,
        dtype=engine_dtype(options, folder),
        device=device,
        row_copy_bytes_max=options.row_copy_bytes_max,
        is_packed=options.pack_linears,
    )
    return decoder, config.shape


def _load_fallback(
    folder: Path, dtype: torch.dtype, device: torch.device, *, why: VariantNotSupported
) -> tuple[StepDecoder, DecoderShape]:
    # Imported here: transformers' models take seconds to import, and most engines need none.
    from libs.engine.fallback import load_fallback

    try:
        decoder = load_fallback(folder, dtype=dtype, device=device)
    except ModelLoadError as error:
        raise ModelLoadError(f"{why}; nor can transformers stand in: {error}") from error
    return decoder, decoder.config


def engine_dtype(options: EngineOptions, folder: Path) -> torch.dtype:
    """Return the type of weights and KV that the options mean for this folder."""
    match options.dtype:
        case "float32":
            return torch.float32
        case "bfloat16":
            return torch.bfloat16
        case "auto":
            stored_half = read_dtype_name(folder) in ("bfloat16", "float16")
            return torch.bfloat16 if stored_half else torch.float32


def engine_device(options: EngineOptions) -> torch.device:
    """Return the device that the options name. Raises: ModelLoadError if it cannot be had."""
    try:
        device = torch.device(options.device)
    except RuntimeError:
        raise ModelLoadError(f"device {options.device!r} is none that torch knows") from None
    if device.type not in ("cpu", "cuda"):
        raise ModelLoadError(f"device {options.device!r} is not supported: cpu and cuda are")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ModelLoadError(f"device {options.device!r}: torch finds no CUDA device here")
    return device


def blocks_useful(options: EngineOptions, config: DecoderShape) -> int:
    """Return the KV blocks of every sequence at full length; more can never be used."""
    blocks_each = -(-_context_wanted(options, config) // options.block_tokens)
    return options.sequences_max * blocks_each


def _context_wanted(options: EngineOptions, config: DecoderShape) -> int:
    return min(config.context_tokens_max, options.context_tokens_max or config.context_tokens_max)


def _kv_shape(
    options: EngineOptions, config: DecoderShape, *, dtype: torch.dtype, device: torch.device
) -> KvShape:
    one_block = KvShape(
        layers=config.layers,
        blocks=1,
        block_tokens=options.block_tokens,
        kv_heads=config.kv_heads,
        head_size=config.head_size,
    )
    blocks_that_fit = _kv_bytes_max(options, device) // one_block.bytes_total(dtype)
    blocks = options.blocks_total or min(blocks_useful(options, config), blocks_that_fit)
    return replace(one_block, blocks=blocks)


def _kv_bytes_max(options: EngineOptions, device: torch.device) -> int:
    if options.kv_bytes_max is not None:
        return options.kv_bytes_max
    if device.type == "cpu":
        return 1024 * MIB
    bytes_free, _ = torch.cuda.mem_get_info(device)
    return int(bytes_free * CUDA_KV_SHARE)
