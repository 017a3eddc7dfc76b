"""Runs decoders that the compact one does not know, through transformers' own code for them.

Transformers lets a model's attention be replaced by name. Ours hands every layer's queries, keys
and values to the PagedAttention of the engine; all tokens of a step go through the model flat, as
one row of tokens with explicit positions, without a cache or masks of its own.

What a layer asks of its attention is found by running the model once; what the engine cannot do
is refused then. Whether model and engine agree is proven before the engine serves: the logits of
a short text, computed in chunks through the paged KV, must equal those of transformers' plain
attention. So a model that keeps state outside its KV, or hides more than the engine knows of, is
refused and never answers wrongly.

It costs more than the compact decoder: plain linears, and some Python for every layer.
"""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AttentionInterface,
    AutoConfig,
    AutoModelForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.utils.logging import disable_progress_bar

from libs.engine.attention import AttentionRule, AttentionStep, KvShape, PagedAttention
from libs.engine.decoder import DecoderStep
from libs.engine.model_config import (
    DecoderShape,
    ModelLoadError,
    read_eos_token_ids,
    refuse_quantized,
)
from libs.engine.safepoints import Safepoints
from libs.engine.steps import PlanEntry

IMPLEMENTATION: Final = "tideserve_paged"
"""Our attention's name among those of transformers, which makes no masks for it."""
PLAIN_IMPLEMENTATION: Final = "eager"
ROPE_TYPES_BY_LENGTH: Final = ("dynamic", "longrope")
"""Rotations that depend on the longest sequence of a batch; here that would be the neighbours'."""
PROOF_CHUNKS: Final = (11, 1, 1, 9, 1, 17, 1)
"""How the text of the proof is computed: prefills, chunks and decodes."""
PROOF_BLOCK_TOKENS: Final = 8
PROOF_ERROR_MAX: Final = {torch.float32: 1e-3, torch.bfloat16: 0.2}
"""Norm of the difference of the logits by that of the logits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerCall:
    """What one layer of the model hands to its attention."""

    layer: int
    rule: AttentionRule
    query_1HND: torch.Tensor
    key_1KND: torch.Tensor
    value_1KND: torch.Tensor


Attend = Callable[[LayerCall], torch.Tensor]
"""Returns [1, N, H, D]."""
_ATTEND: ContextVar[Attend] = ContextVar("attend")


def _attention_of_transformers(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    **_: object,
) -> tuple[torch.Tensor, None]:
    """Attend as the forward pass under way says; called by the models of transformers."""
    if s_aux is not None:
        raise ModelLoadError("its attention has sinks, which are not supported")
    layer = getattr(module, "layer_idx", None)
    if not isinstance(layer, int):
        raise ModelLoadError("its attention does not say which layer it belongs to")
    rule = AttentionRule(scale=scaling, window_tokens=sliding_window, softcap=softcap)
    call = LayerCall(layer=layer, rule=rule, query_1HND=query, key_1KND=key, value_1KND=value)
    return _ATTEND.get()(call), None


AttentionInterface.register(IMPLEMENTATION, _attention_of_transformers)


class FallbackDecoder:
    """A decoder of transformers whose KV lives in a PagedAttention."""

    def __init__(self, model: PreTrainedModel, config: DecoderShape) -> None:
        self.config = config
        self.dtype = model.dtype
        self.device = model.device
        self._model = model

    def forward(
        self, step: DecoderStep, *, attention: PagedAttention, safepoints: Safepoints | None = None
    ) -> torch.Tensor | None:
        """Compute the rows, write their KV, and return logits_RV in the weights' type; None if the
        step was given up at a safepoint.

        A safepoint is reached when its layer asks for attention, the one moment at which the code
        of transformers comes back here.
        """

        def attend(call: LayerCall) -> torch.Tensor:
            is_safepoint = safepoints is not None and safepoints.is_before(call.layer)
            if is_safepoint and safepoints is not None and safepoints.must_stop(layer=call.layer):
                raise _GivenUp
            return _attend_paged(call, step.attention, attention)

        try:
            return _logits(
                self._model,
                step.token_ids_N,
                positions_N=step.positions_N,
                rows_R=step.logit_rows_R,
                attend=attend,
            )
        except _GivenUp:
            return None


class _GivenUp(Exception):
    """Leaves the code of transformers in the middle of a model."""


def load_fallback(folder: Path, *, dtype: torch.dtype, device: torch.device) -> FallbackDecoder:
    """Load any decoder that transformers knows, without running code from the folder.

    Raises: ModelLoadError, one line with the reason, for what cannot be loaded or served right.
    """
    refuse_quantized(folder)
    with _one_line_errors(folder):
        model = _load_model(folder, dtype=dtype).to(device)  # type: ignore[arg-type]
        with torch.inference_mode():
            decoder = FallbackDecoder(model, _shape(folder, model))
            _prove(model, decoder)
    return decoder


def refuse_by_config(folder: Path) -> None:
    """Refuse, without reading weights, a folder whose config.json is enough to tell.

    Raises: ModelLoadError, one line with the reason.
    """
    refuse_quantized(folder)
    with _one_line_errors(folder):
        _read_config(folder)


@contextmanager
def _one_line_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except ModelLoadError as error:
        raise ModelLoadError(f"{folder}: {error}") from error
    except Exception as error:  # models of transformers raise nearly everything
        reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        raise ModelLoadError(f"{folder}: transformers cannot run it: {reason}") from error


def _read_config(folder: Path) -> PretrainedConfig:
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    assert isinstance(config, PretrainedConfig)
    _refuse_config(config)
    return config


def _load_model(folder: Path, *, dtype: torch.dtype) -> PreTrainedModel:
    config = _read_config(folder)
    disable_progress_bar()  # type: ignore[no-untyped-call]
    loaded: object = AutoModelForCausalLM.from_pretrained(
        folder,
        config=config,
        dtype=dtype,
        use_safetensors=True,
        local_files_only=True,
        trust_remote_code=False,
        attn_implementation=IMPLEMENTATION,
        output_loading_info=True,
    )
    assert isinstance(loaded, tuple)
    model, report = loaded
    assert isinstance(model, PreTrainedModel)
    missing = sorted(report["missing_keys"])
    if missing:
        raise ModelLoadError(f"tensor {missing[0]} is in none of the files")
    model.train(False)
    return model


def _refuse_config(config: PretrainedConfig) -> None:
    model_class: object = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    if not (isinstance(model_class, type) and issubclass(model_class, PreTrainedModel)):
        raise ModelLoadError(f"model_type {config.model_type!r} is no decoder")
    if not model_class._supports_attention_backend:
        raise ModelLoadError(
            f"the attention of model_type {config.model_type!r} is not replaceable"
        )
    text_config = config.get_text_config(decoder=True)
    rope = getattr(text_config, "rope_parameters", None) or {}
    nested = [value for value in rope.values() if isinstance(value, dict)]
    for rope_type in (parameters.get("rope_type") for parameters in (rope, *nested)):
        if rope_type in ROPE_TYPES_BY_LENGTH:
            raise ModelLoadError(f"rope type {rope_type!r} is not supported")
    if not isinstance(getattr(text_config, "max_position_embeddings", None), int):
        raise ModelLoadError("config.json does not say max_position_embeddings")


def _shape(folder: Path, model: PreTrainedModel) -> DecoderShape:
    """Run the model once and see what its layers hand to their attention."""
    calls: list[LayerCall] = []

    def record(call: LayerCall) -> torch.Tensor:
        calls.append(call)
        return torch.zeros_like(call.query_1HND).transpose(1, 2).contiguous()

    token_ids_N = torch.zeros(2, dtype=torch.int64, device=model.device)
    positions_N = torch.arange(2, device=model.device)
    logits = _logits(model, token_ids_N, positions_N=positions_N, rows_R=positions_N, attend=record)
    text_config = model.config.get_text_config(decoder=True)
    layers = int(text_config.num_hidden_layers)
    if sorted(call.layer for call in calls) != list(range(layers)):
        raise ModelLoadError("not each of its layers has one attention of its own")
    _, heads, _, head_size = calls[0].query_1HND.shape
    kv_heads = calls[0].key_1KND.shape[1]
    for call in calls:
        if call.query_1HND.shape != (1, heads, 2, head_size):
            raise ModelLoadError("its layers differ in their heads")
        kv_shape = (1, kv_heads, 2, head_size)
        if call.key_1KND.shape != kv_shape or call.value_1KND.shape != kv_shape:
            raise ModelLoadError("its keys and values differ in size, by layer or from queries")
    if logits.shape[-1] != text_config.vocab_size:
        raise ModelLoadError(f"it scores {logits.shape[-1]} tokens of {text_config.vocab_size}")
    windows = {call.rule.window_tokens for call in calls} - {None}
    return DecoderShape(
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        head_size=head_size,
        vocabulary_size=text_config.vocab_size,
        context_tokens_max=text_config.max_position_embeddings,
        windows=frozenset(window for window in windows if window is not None),
        eos_token_ids=read_eos_token_ids(folder),
    )


def _prove(model: PreTrainedModel, decoder: FallbackDecoder) -> None:
    """Raise ModelLoadError unless paged and plain attention give the same logits."""
    shape = decoder.config
    chunks = _proof_chunks(shape.context_tokens_max)
    generator = torch.Generator().manual_seed(0)
    token_ids_N = torch.randint(shape.vocabulary_size, (sum(chunks),), generator=generator)
    blocks = -(-sum(chunks) // PROOF_BLOCK_TOKENS)
    attention = PagedAttention(
        KvShape(
            layers=shape.layers,
            blocks=blocks,
            block_tokens=PROOF_BLOCK_TOKENS,
            kv_heads=shape.kv_heads,
            head_size=shape.head_size,
        ),
        heads=shape.heads,
        windows=shape.windows,
        context_tokens_max=sum(chunks),
        dtype=decoder.dtype,
        device=decoder.device,
    )
    paged, start = [], 0
    for tokens in chunks:
        ids = token_ids_N[start : start + tokens].tolist()
        logits = decoder.forward(_proof_step(ids, start, attention), attention=attention)
        assert logits is not None
        paged.append(logits)
        start += tokens
    plain_NV = _plain_logits(model, token_ids_N.to(decoder.device))
    error = (torch.cat(paged) - plain_NV).float().norm() / plain_NV.float().norm()
    if not error.item() <= PROOF_ERROR_MAX[decoder.dtype]:
        raise ModelLoadError(
            f"its attention does more than is supported: logits are off by {error.item():.1g}"
        )


def _proof_chunks(context_tokens_max: int) -> list[int]:
    chunks: list[int] = []
    for tokens in PROOF_CHUNKS:
        if sum(chunks) + tokens <= context_tokens_max:
            chunks.append(tokens)
    return chunks


def _proof_step(token_ids: list[int], start: int, attention: PagedAttention) -> DecoderStep:
    end = start + len(token_ids)
    entry = PlanEntry(
        sequence_id="proof",
        token_ids=tuple(token_ids),
        start_position=start,
        block_table=tuple(range(-(-end // PROOF_BLOCK_TOKENS))),
        is_sampling=True,
        output_index=0,
    )
    step = attention.prepare([entry])
    device = step.slots_N.device
    return DecoderStep(
        token_ids_N=torch.tensor(token_ids, device=device),
        positions_N=torch.arange(start, end, device=device),
        logit_rows_R=torch.arange(len(token_ids), device=device),
        attention=step,
    )


def _plain_logits(model: PreTrainedModel, token_ids_N: torch.Tensor) -> torch.Tensor:
    """Let transformers compute the logits of all positions its own way."""
    model.set_attn_implementation(PLAIN_IMPLEMENTATION)
    try:
        logits: torch.Tensor = model(input_ids=token_ids_N[None], use_cache=False).logits[0]
        return logits
    finally:
        model.set_attn_implementation(IMPLEMENTATION)


def _logits(
    model: PreTrainedModel,
    token_ids_N: torch.Tensor,
    *,
    positions_N: torch.Tensor,
    rows_R: torch.Tensor,
    attend: Attend,
) -> torch.Tensor:
    """Run the model over flat rows; scaling and capping of the logits are in its own code."""
    can_select = "logits_to_keep" in inspect.signature(model.forward).parameters
    selection = {"logits_to_keep": rows_R} if can_select else {}
    token = _ATTEND.set(attend)
    try:
        logits_RV: torch.Tensor = model(
            input_ids=token_ids_N[None],
            position_ids=positions_N[None],
            use_cache=False,
            **selection,
        ).logits[0]
    finally:
        _ATTEND.reset(token)
    return logits_RV if can_select else logits_RV.index_select(0, rows_R)


def _attend_paged(call: LayerCall, step: AttentionStep, attention: PagedAttention) -> torch.Tensor:
    _, heads, rows, head_size = call.query_1HND.shape
    key_value_1KND = torch.cat((call.key_1KND, call.value_1KND), dim=1)
    attended = attention.attend(
        step,
        layer=call.layer,
        query_NHD=call.query_1HND[0].transpose(0, 1).contiguous(),
        kv_N2KD=key_value_1KND[0].transpose(0, 1),
        rule=call.rule,
    )
    return attended.view(1, rows, heads, head_size)
