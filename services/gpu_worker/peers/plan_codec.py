"""A step's plan as it goes from a replica's lead to its members."""

from typing import Final

from libs.engine.steps import StepPlan
from services.gpu_worker.peers.array_codec import ArrayCodec

STEP_PLANS: Final = ArrayCodec(StepPlan, tag="step_plan.v1")
"""Members of one replica run the same release, so that the fields may change with any of them."""
