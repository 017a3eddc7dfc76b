"""What operators want the shape to be: taken up at once, answered once it is committed.

Until then the wish could still be lost with this planner, and an operator who hears nothing asks
again.
"""

from libs.contracts.placement import (
    PinAnswer,
    PinnedShape,
    PinRefused,
    Placement,
    ShapePinned,
)
from services.planner.commands import AnswerPin
from services.planner.events import PinRequested
from services.planner.options import PlannerOptions
from services.planner.placing import can_pin

UNANSWERED_MAX = 16
"""Operators waiting for an answer; past it the first of them gets none."""


class Pins:
    """The shape that is wanted, and who waits to hear of it."""

    def __init__(self, options: PlannerOptions) -> None:
        self._options = options
        self._unanswered: list[PinRequested] = []
        self.shape: PinnedShape | None = None

    def request(self, event: PinRequested) -> list[AnswerPin]:
        """Take up a wish, or refuse it if the model cannot be cut like that."""
        shape = event.request.shape
        if shape is not None and not can_pin(shape, self._options):
            message = (
                f"{self._options.profile.name} cannot be cut into {shape.stages} stages of "
                f"{shape.shards} shards"
            )
            return _answers([event], PinRefused(message=message))
        self.shape = shape
        self._unanswered = [*self._unanswered, event][-UNANSWERED_MAX:]
        return []

    def committed(self, placement: Placement) -> list[AnswerPin]:
        """Answer every wish that the committed placement has taken up."""
        if placement.pinned_shape != self.shape:
            return []
        waiting, self._unanswered = self._unanswered, []
        return _answers(waiting, ShapePinned(plan_revision=placement.plan_revision))

    def adopt(self, placement: Placement) -> None:
        """Go on from what is committed; whoever waited for this planner asks again."""
        self.shape = placement.pinned_shape
        self._unanswered = []


def _answers(events: list[PinRequested], answer: PinAnswer) -> list[AnswerPin]:
    return [
        AnswerPin(
            reply_to=event.reply_to,
            encoding=event.encoding,
            answer=answer,
            cause_id=event.cause_id,
        )
        for event in events
        if event.reply_to
    ]
