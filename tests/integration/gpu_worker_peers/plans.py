"""Plans with every field set, for links and codecs."""

from libs.engine.requests import SamplingOptions, SequenceRequest, StopOptions
from libs.engine.steps import PlanEntry, StepPlan


def a_plan(step_id: int, *, sequences: int = 2) -> StepPlan:
    """Return a plan that decodes so many sequences and opens and closes one."""
    return StepPlan(
        step_id=step_id,
        entries=tuple(
            PlanEntry(
                sequence_id=f"sequence-{number}",
                token_ids=(7 * number + step_id,),
                start_position=20,
                block_table=(3, 5 + number),
                is_sampling=True,
                output_index=4,
                tokens_scored=1,
            )
            for number in range(sequences)
        ),
        opened=(a_request(),),
        closed=("sequence-gone",),
        layers_between_safepoints=4,
    )


def a_request() -> SequenceRequest:
    """Return a request that leaves no field at its default."""
    return SequenceRequest(
        sequence_id="sequence-0",
        prompt_token_ids=(1, 2, 3),
        generated_token_ids=(4, 5),
        sampling=SamplingOptions(
            temperature=0.5,
            top_k=40,
            top_p=0.9,
            seed=2**63 + 1,
            min_p=0.05,
            repetition_penalty=1.1,
            presence_penalty=0.25,
            frequency_penalty=0.125,
            logit_bias=((5, -1.5), (9, 2.0)),
            logprobs=3,
            prompt_logprobs=True,
        ),
        stop=StopOptions(
            max_tokens=64,
            stop_strings=("END", "\n\n"),
            stop_token_ids=frozenset({9, 2, 17}),
            ignore_eos=True,
            min_tokens=2,
        ),
        priority=3,
        tenant="tenant-b",
        answer_schema='{"type": "integer"}',
        cache_salt="tenant-a",
    )
