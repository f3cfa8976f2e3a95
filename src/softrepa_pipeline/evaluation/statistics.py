"""Per-task accuracy and paired bootstrap intervals."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from softrepa_pipeline.randomness import numpy_generator

_NUM_RESAMPLES = 4000


@dataclass(frozen=True)
class Interval:
    """A mean with its 95 % percentile bootstrap interval."""

    mean: float
    low: float
    high: float


def task_means(scores: np.ndarray, tasks: list[str]) -> dict[str, float]:
    """Mean score of each task, from scores (prompts, seeds)."""
    labels = np.array(tasks)
    return {task: float(scores[labels == task].mean()) for task in dict.fromkeys(tasks)}


def overall(scores: np.ndarray, tasks: list[str]) -> float:
    """Mean of the tasks' means, as GenEval's overall score."""
    return float(np.mean(list(task_means(scores, tasks).values())))


def paired_intervals(
    base: np.ndarray, soft: np.ndarray, tasks: list[str], seed: int = 0
) -> tuple[Interval, dict[str, Interval]]:
    """Intervals of soft − base, overall and by task; scores are (prompts, images), paired by prompt.

    Prompts are resampled within their task, with all their images: images of one prompt are not independent.
    """
    difference = soft.mean(axis=1) - base.mean(axis=1)
    labels = np.array(tasks)
    resampled, by_task = [], {}
    for task in dict.fromkeys(tasks):
        values = difference[labels == task]
        rng = numpy_generator(seed, f"bootstrap {task}")
        means = values[rng.integers(len(values), size=(_NUM_RESAMPLES, len(values)))].mean(axis=1)
        resampled.append(means)
        by_task[task] = _interval(float(values.mean()), means)
    total = float(np.mean([interval.mean for interval in by_task.values()]))
    return _interval(total, np.mean(resampled, axis=0)), by_task


def _interval(mean: float, resampled: np.ndarray) -> Interval:
    low, high = np.quantile(resampled, [0.025, 0.975])
    return Interval(mean, float(low), float(high))
