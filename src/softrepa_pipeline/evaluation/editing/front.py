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


@dataclass(frozen=True)
class Curve:
    """What an arm reached for each edit, from each start step."""

    success: Float[np.ndarray, "starts edits"]
    kept: Float[np.ndarray, "starts edits"]

    def means(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean success and preservation by start step, over some of the edits."""
        return self.success[:, rows].mean(axis=1), self.kept[:, rows].mean(axis=1)


def front_gains(base: Curve, soft: Curve, kinds: Sequence[str], start_steps: Sequence[int]) -> list[dict[str, Any]]:
    """Success of soft tokens less the base's success at the same preservation, which is read off its curve.

    One entry for each start step whose preservation with soft tokens lies within the base's curve; 95 % intervals by
    bootstrap over edits within their kind.
    """
    labels = np.array(kinds)
    rng = numpy_generator(0, "bootstrap front")
    groups = [np.flatnonzero(labels == kind) for kind in dict.fromkeys(kinds)]
    resampled = []
    for _ in range(_NUM_RESAMPLES):
        rows = np.concatenate([rng.choice(group, len(group)) for group in groups])
        resampled.append(_gains(base, soft, rows))
    low, high = np.quantile(resampled, [0.025, 0.975], axis=0)
    every = np.arange(len(kinds))
    gains, kept, reach = _gains(base, soft, every), soft.means(every)[1], base.means(every)[1]
    return [
        {
            "start_step": start,
            "kept": float(kept[i]),
            "gain": float(gains[i]),
            "low": float(low[i]),
            "high": float(high[i]),
        }
        for i, start in enumerate(start_steps)
        if reach.min() <= kept[i] <= reach.max()
    ]


def _gains(base: Curve, soft: Curve, rows: np.ndarray) -> np.ndarray:
    success, kept = base.means(rows)
    soft_success, soft_kept = soft.means(rows)
    order = np.argsort(kept)
    return soft_success - np.interp(soft_kept, kept[order], success[order])
