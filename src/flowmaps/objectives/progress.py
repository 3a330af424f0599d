"""How far the training of an objective is: what its caller says, and what is refused where the caller says nothing.

An objective with a schedule stands at the end of it unless it is told where training stands, and a target that should
follow the map stays where it was unless `Objective.step` is called: both would train something else in silence.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from .base import Objective

END = 1.0
"""The progress of a draw where nothing is trained."""


class Progress:
    """Where the training of an objective stands.

    Attributes:
        now: the share of the steps that the last `step` said, or the first draw; `None` before both.
        drawn: the share that the last draw in training said; `None` once `step` has followed it.
    """

    def __init__(self) -> None:
        self.now: float | None = None
        self.drawn: float | None = None
        self._schedule: bool | None = None
        self._warms_up_alone = False
        self._untold: list[float] | None = None
        self._moves: bool | None = None

    def of_draw(self, progress: float | None, objective: Objective) -> float:
        """The progress of a draw.

        Raises:
            ValueError: the objective is in training and changes with it, and was not told where training stands; or
                a draw follows one of an earlier step without a call of `step` in between.
        """
        if progress is not None:
            check_progress(progress)
        if not objective.training:
            return END if progress is None else progress
        if progress is None:
            words = self._what_changes(objective)
            if words and not self._is_first_loss(objective):
                raise ValueError(
                    f"this objective has {words}, and was not told where training stands: call objective(x1, "
                    "progress=step / steps), and objective.step((step + 1) / steps) after optimiser.step(). For its "
                    "loss at the end of training call objective.eval() first."
                )
            return END
        if torch.is_grad_enabled():
            self._check_stepped(progress, objective)
            self.drawn = progress
            if self.now is None or progress < self.now:  # the first draw, or a training that begins anew
                self.now = progress
        return progress

    def of_step(self, progress: float, before: float | None) -> float:
        """Take note of a step of the optimiser; returns the share of the steps before it."""
        check_progress(progress)
        if before is None:
            before = 0.0 if self.now is None else min(self.now, progress)
        self.now, self.drawn = progress, None
        return before

    def _check_stepped(self, progress: float, objective: Objective) -> None:
        if self.drawn not in (None, progress) and self._has_moving_target(objective):
            raise ValueError(
                f"this objective has a target that follows the map, and training went on from progress {self.drawn:g} "
                f"to {progress:g} without it: call objective.step((step + 1) / steps) after optimiser.step()."
            )

    def _what_changes(self, objective: Objective) -> str | None:
        if self._schedule is None:
            self._schedule = objective.changes_with_progress()
            self._warms_up_alone = self._schedule and not objective.changes_with_progress(warmup=False)
        if self._schedule:
            return "a schedule that runs to the last step"
        return "a target that follows the map" if self._has_moving_target(objective) else None

    def _has_moving_target(self, objective: Objective) -> bool:
        if self._moves is None:
            self._moves = bool(objective.moving_targets())
        return self._moves

    def _is_first_loss(self, objective: Objective) -> bool:
        """Whether no weight has changed since the first loss without a word, of an objective that only warms up.

        That is its loss after the warm-up, to look at: a loop that trains is refused from its second step on.
        """
        if not self._warms_up_alone or self._has_moving_target(objective):
            return False
        weights = [value.detach() for value in objective.parameters()]
        # an optimiser may write into .data, which changes no version: the sizes of the weights are compared too
        now = [float(value._version) for value in weights] + [float(value.abs().sum()) for value in weights]
        self._untold = now if self._untold is None else self._untold
        return self._untold == now


def check_progress(progress: float) -> None:
    """Refuse a progress outside [0, 1], such as a number of steps.

    Raises:
        ValueError: it is outside.
    """
    if not 0 <= progress <= 1:
        raise ValueError(
            f"progress is the share of the training steps that have been taken, in [0, 1], got {progress!r}: pass "
            "step / steps."
        )
