"""Steps that must not reach the tokens: losses or gradients that are not finite, and spikes."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass, replace

_WINDOW = 64
_SPIKE = 20.0
_BAD_IN_ROW = 3
_ROLLBACKS = 3


@dataclass(frozen=True)
class Guard:
    """What has happened so far: part of a checkpoint, so that a resumed run judges as the undisturbed one.

    `learning_rate_scale` is halved by every rollback; `recent` are the losses of the last good steps.
    """

    bad_in_row: int = 0
    rollbacks: int = 0
    learning_rate_scale: float = 1.0
    recent: tuple[float, ...] = ()

    def fault(self, loss: float, gradient_norm: float) -> str | None:
        """Why a step must be skipped: not finite, or a loss 20 times the median of the last 64."""
        if not (math.isfinite(loss) and math.isfinite(gradient_norm)):
            return "not finite"
        if len(self.recent) == _WINDOW and abs(loss) > _SPIKE * abs(statistics.median(self.recent)):
            return "loss spike"
        return None

    def after_good(self, loss: float) -> Guard:
        return replace(self, bad_in_row=0, recent=(*self.recent, loss)[-_WINDOW:])

    def after_bad(self) -> Guard:
        return replace(self, bad_in_row=self.bad_in_row + 1)

    @property
    def must_roll_back(self) -> bool:
        return self.bad_in_row >= _BAD_IN_ROW

    def rolled_back(self) -> Guard:
        """The guard to go on with from the last checkpoint, at half the learning rate.

        Raises:
            ValueError: it has been rolled back too often.
        """
        if self.rollbacks >= _ROLLBACKS:
            raise ValueError(
                f"{_BAD_IN_ROW} steps in a row were not usable, after {_ROLLBACKS} rollbacks; skipped.jsonl in the "
                "run's folder names their images; lower fit.learning_rate or raise fit.temperature"
            )
        halved = self.learning_rate_scale / 2
        return replace(self, bad_in_row=0, rollbacks=self.rollbacks + 1, learning_rate_scale=halved)
