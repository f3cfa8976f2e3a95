"""Does one arm succeed more often than the other where both keep as much of the image?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from softrepa_pipeline.randomness import numpy_generator

if TYPE_CHECKING:
    from jaxtyping import Float

_NUM_RESAMPLES = 2000
# Preservations at which two curves are compared, evenly over what both reach.
_NUM_LEVELS = 100


@dataclass(frozen=True)
class Curve:
    """What an arm reached for each edit, from each start step."""

    success: Float[np.ndarray, "starts edits"]
    kept: Float[np.ndarray, "starts edits"]

    def means(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean success and preservation by start step, over some of the edits."""
        return self.success[:, rows].mean(axis=1), self.kept[:, rows].mean(axis=1)


def front_gain(base: Curve, soft: Curve, kinds: Sequence[str], start_steps: Sequence[int]) -> dict[str, Any] | None:
    """Success of soft tokens less the base's success at the same preservation, each read off its curve.

    `gain` is the mean over all preservations that both reach, `from_db` to `to_db`; `steps` reads the base's curve
    where soft tokens are from each start step. 95 % intervals by bootstrap over edits within their kind. None where
    the curves share no preservation.
    """
    every = np.arange(len(kinds))
    reach, kept = base.means(every)[1], soft.means(every)[1]
    first, last = max(reach.min(), kept.min()), min(reach.max(), kept.max())
    if first >= last:
        return None
    levels = np.linspace(first, last, _NUM_LEVELS)
    columns = (_gains(base, soft, every, levels), *_bounds(base, soft, kinds, levels))
    overall, *steps = (
        dict(zip(("gain", "low", "high"), map(float, row), strict=True)) for row in zip(*columns, strict=True)
    )
    found = zip(start_steps, kept, steps, strict=True)
    return {
        **overall,
        "from_db": float(first),
        "to_db": float(last),
        "steps": [
            {"start_step": start, "kept": float(own), **gain} for start, own, gain in found if first <= own <= last
        ],
    }


def _bounds(base: Curve, soft: Curve, kinds: Sequence[str], levels: np.ndarray) -> np.ndarray:
    """The 2.5 and 97.5 % quantiles of `_gains` over resampled edits."""
    labels = np.array(kinds)
    rng = numpy_generator(0, "bootstrap front")
    groups = [np.flatnonzero(labels == kind) for kind in dict.fromkeys(kinds)]
    resampled = []
    for _ in range(_NUM_RESAMPLES):
        rows = np.concatenate([rng.choice(group, len(group)) for group in groups])
        resampled.append(_gains(base, soft, rows, levels))
    return np.quantile(resampled, [0.025, 0.975], axis=0)


def _gains(base: Curve, soft: Curve, rows: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """The mean gain over the levels, then the gain where soft tokens are from each start step."""
    curve, (success, kept) = _rising(base, rows), soft.means(rows)
    along = np.interp(levels, *_rising(soft, rows)) - np.interp(levels, *curve)
    return np.array([along.mean(), *(success - np.interp(kept, *curve))])


def _rising(curve: Curve, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Preservation, rising, and the success there."""
    success, kept = curve.means(rows)
    order = np.argsort(kept)
    return kept[order], success[order]
