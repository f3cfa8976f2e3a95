"""Per-task means, paired bootstrap intervals and tests, and their correction for several measures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from softrepa_pipeline.randomness import numpy_generator

_NUM_RESAMPLES = 4000


@dataclass(frozen=True)
class Interval:
    """A mean with its 95 % percentile bootstrap interval, and the two-sided p of a mean of 0 by sign flips."""

    mean: float
    low: float
    high: float
    p: float


def task_means(scores: np.ndarray, tasks: list[str]) -> dict[str, float]:
    """Mean score of each task, from scores (prompts, seeds)."""
    labels = np.array(tasks)
    return {task: float(scores[labels == task].mean()) for task in dict.fromkeys(tasks)}


def overall(scores: np.ndarray, tasks: list[str]) -> float:
    """Mean of the tasks' means, as GenEval's overall score."""
    return float(np.mean(list(task_means(scores, tasks).values())))


def gains_by_prompt(base: np.ndarray, soft: np.ndarray, tasks: list[str]) -> dict[str, np.ndarray]:
    """What each prompt of a task gains, by task (prompts of it,): soft − base of scores (prompts, images), means."""
    difference = soft.mean(axis=1) - base.mean(axis=1)
    labels = np.array(tasks)
    return {task: difference[labels == task] for task in dict.fromkeys(tasks)}


def paired_intervals(
    base: np.ndarray, soft: np.ndarray, tasks: list[str], seed: int = 0
) -> tuple[Interval, dict[str, Interval]]:
    """Intervals of soft − base, overall and by task; scores are (prompts, images), paired by prompt.

    A prompt counts with all its images: images of one prompt are not independent.
    """
    return gain_intervals(gains_by_prompt(base, soft, tasks), seed)


def gain_intervals(gains: Mapping[str, np.ndarray], seed: int = 0) -> tuple[Interval, dict[str, Interval]]:
    """Intervals of the mean gain, overall and by task, of what each prompt of a task gains (prompts of it,).

    Prompts are resampled within their task. For the test a prompt's gain changes its sign, as it may where both models
    are the same.
    """
    resampled, flipped, by_task = [], [], {}
    for task, values in gains.items():
        rng = numpy_generator(seed, f"bootstrap {task}")
        means = values[rng.integers(len(values), size=(_NUM_RESAMPLES, len(values)))].mean(axis=1)
        signs = numpy_generator(seed, f"sign flips {task}").choice((-1.0, 1.0), (_NUM_RESAMPLES, len(values)))
        null = signs @ values / len(values)
        resampled.append(means)
        flipped.append(null)
        by_task[task] = _interval(float(values.mean()), means, null)
    total = float(np.mean([interval.mean for interval in by_task.values()]))
    return _interval(total, np.mean(resampled, axis=0), np.mean(flipped, axis=0)), by_task


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Adjusted p of several tests, so that one at 0.05 is wrong in 5 % of all families of tests (Holm 1979)."""
    adjusted, highest = {}, 0.0
    for rank, name in enumerate(sorted(p_values, key=p_values.__getitem__)):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[name]))
        adjusted[name] = highest
    return {name: adjusted[name] for name in p_values}


def _interval(mean: float, resampled: np.ndarray, null: np.ndarray) -> Interval:
    low, high = np.quantile(resampled, [0.025, 0.975])
    # The data's own signs are one of the flips. Sums in another order differ in their last bits.
    as_large = np.abs(null) >= abs(mean) - 1e-12
    return Interval(mean, float(low), float(high), float((1 + as_large.sum()) / (1 + len(null))))
