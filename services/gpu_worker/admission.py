"""Turns StartSession into a sequence of the engine, or says why not."""

from libs.contracts.sessions import RefuseReason, StartSession
from libs.engine.requests import SamplingOptions, SequenceRequest, StopOptions, refuse_reason
from services.gpu_worker.options import WorkerOptions


def sequence_of(start: StartSession, *, sequence_id: str) -> SequenceRequest:
    """Say to the engine what the router asked for. Needs a seed where `refusal_of` does."""
    spec = start.spec
    return SequenceRequest(
        sequence_id=sequence_id,
        prompt_token_ids=spec.prompt_token_ids,
        generated_token_ids=start.generated_token_ids,
        sampling=SamplingOptions(
            temperature=spec.sampling.temperature,
            top_k=spec.sampling.top_k,
            top_p=spec.sampling.top_p,
            seed=spec.sampling.seed or 0,
            min_p=spec.sampling.min_p,
            repetition_penalty=spec.sampling.repetition_penalty,
            presence_penalty=spec.sampling.presence_penalty,
            frequency_penalty=spec.sampling.frequency_penalty,
            logit_bias=tuple(sorted(spec.sampling.logit_bias.items())),
            logprobs=spec.sampling.logprobs,
            prompt_logprobs=spec.sampling.prompt_logprobs,
        ),
        stop=StopOptions(
            max_tokens=spec.max_tokens,
            stop_strings=spec.stop,
            stop_token_ids=frozenset(spec.sampling.stop_token_ids),
            ignore_eos=spec.ignore_eos,
            min_tokens=spec.sampling.min_tokens,
        ),
        priority=spec.priority,
        tenant=spec.tenant,
        answer_schema=spec.answer_schema,
    )


def refusal_of(start: StartSession, options: WorkerOptions) -> tuple[RefuseReason, str] | None:
    """Say why this worker can never run the session, or None if it can."""
    spec = start.spec
    if spec.alias != options.alias:
        return RefuseReason.WRONG_MODEL, f"this worker serves {options.alias}, not {spec.alias}"
    if spec.sampling.seed is None and spec.sampling.temperature > 0:
        # A seed drawn here would change the continuation when the session moves.
        return RefuseReason.INVALID, "sampling.seed is missing and temperature is above 0"
    if spec.answer_schema is not None and not options.can_hold_to_schema:
        return RefuseReason.INVALID, "this model's tokenizer cannot hold answers to a schema"
    message = refuse_reason(
        sequence_of(start, sequence_id=""),
        context_tokens_max=options.engine.context_tokens_max,
        vocabulary_size=options.vocabulary_size,
        blocks_total=options.engine.blocks_total,
        block_tokens=options.engine.block_tokens,
    )
    return None if message is None else (RefuseReason.INVALID, message)
