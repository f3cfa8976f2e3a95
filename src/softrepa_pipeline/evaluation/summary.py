"""The figures of an evaluation: accuracies by task, every measure with its interval, corrected for their number."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from softrepa_pipeline.evaluation.arm import Arm
from softrepa_pipeline.evaluation.benchmark import Benchmark
from softrepa_pipeline.evaluation.counting import count_confusion, look_at, repetitions
from softrepa_pipeline.evaluation.scorers import NotMeasured, Scores
from softrepa_pipeline.evaluation.statistics import holm, overall, paired_intervals, task_means


def summarise(benchmark: Benchmark, base: Arm, soft: Sequence[Arm]) -> dict[str, Any]:
    """The base against one or more trainings of soft tokens.

    `delta` is of the first scorer, by task and overall; `measures` holds every scorer and the denoising retrieval, with
    the intervals of their differences, p by sign flips and `p_holm`, corrected for the number of measures.
    """
    tasks = benchmark.test.tasks
    deciding = np.concatenate([arm.deciding for arm in soft], axis=1)
    total, by_task = paired_intervals(base.deciding, deciding, tasks)
    return {
        "prompts": benchmark.name,
        "num_prompts": len(tasks),
        "num_prompts_by_task": dict(Counter(tasks)),
        "seeds_per_prompt": int(base.deciding.shape[1]),
        "num_trainings": len(soft),
        "decided_by": next(iter(base.scores)),
        "scale": _scale(base),
        "base": {"overall": overall(base.deciding, tasks), "tasks": task_means(base.deciding, tasks)},
        "soft": {"overall": overall(deciding, tasks), "tasks": task_means(deciding, tasks)},
        "delta": {"overall": asdict(total), "tasks": {task: asdict(interval) for task, interval in by_task.items()}},
        "guidance": {"base": base.guidance, "soft": [arm.guidance for arm in soft]},
        "validation": {"base": _by_guidance(base), "soft": [_by_guidance(arm) for arm in soft]},
        "measures": _corrected({**_measures(base, soft, tasks), **_repetition(benchmark, base, soft)}),
        "counting": _counting(benchmark, base, soft),
        "sets": {name: _compare_distances(base, soft, name) for name in base.distances},
    }


def _scale(arm: Arm) -> float:
    first = next(iter(arm.scores.values()))
    assert isinstance(first, Scores)
    return first.scale


def _measures(base: Arm, soft: Sequence[Arm], tasks: list[str]) -> dict[str, dict[str, Any]]:
    measures = {name: _compare_scores(base, soft, name, tasks) for name in base.scores}
    if base.hits is not None:
        after = np.stack([arm.hits for arm in soft if arm.hits is not None], axis=1)
        before, images = base.hits[:, None], ["retrieval"] * len(base.hits)
        measures["denoising_retrieval"] = _compare(before, after, images, "own caption has the lowest error", 100.0)
    return measures


def _compare_scores(base: Arm, soft: Sequence[Arm], name: str, tasks: list[str]) -> dict[str, Any]:
    """One scorer's comparison, or why there is none."""
    results = [arm.scores[name] for arm in (base, *soft)]
    measured = [result for result in results if isinstance(result, Scores)]
    if len(measured) < len(results):
        return {"not_measured": next(result.reason for result in results if isinstance(result, NotMeasured))}
    before, *after = (result.values.reshape(len(tasks), -1) for result in measured)
    return _compare(before, np.concatenate(after, axis=1), tasks, measured[0].model, measured[0].scale)


def _compare(before: np.ndarray, after: np.ndarray, tasks: list[str], model: str, scale: float) -> dict[str, Any]:
    """Means over tasks of scores (prompts, images) and the paired interval of their difference."""
    return {
        "model": model,
        "scale": scale,
        "base": overall(before, tasks),
        "soft": overall(after, tasks),
        "delta": asdict(paired_intervals(before, after, tasks)[0]),
        "fewer_is_better": False,
    }


def _repetition(benchmark: Benchmark, base: Arm, soft: Sequence[Arm]) -> dict[str, dict[str, Any]]:
    """Objects beyond those asked for, the over-emphasis measure, where the world's verifier can count them."""
    claims = benchmark.claims
    if claims is None:
        return {}
    before, *after = (repetitions(claims, look_at(arm.images)) for arm in (base, *soft))
    compared = _compare(
        before, np.concatenate(after, axis=1), benchmark.test.tasks, "objects beyond those asked for", 1.0
    )
    return {"repetition_index": {**compared, "fewer_is_better": True}}


def _counting(benchmark: Benchmark, base: Arm, soft: Sequence[Arm]) -> dict[str, Any]:
    """Images by the count asked for (rows) and drawn (columns), of both models."""
    claims = benchmark.claims
    if claims is None:
        return {}
    before, *after = (count_confusion(claims, look_at(arm.images)) for arm in (base, *soft))
    if not before.asked:
        return {}
    soft_images = np.sum([own.images for own in after], axis=0)
    return {
        "asked": list(before.asked),
        "drawn": list(before.columns),
        "base": before.images.tolist(),
        "soft": soft_images.tolist(),
    }


def _corrected(measures: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    adjusted = holm({name: own["delta"]["p"] for name, own in measures.items() if "delta" in own})
    return {name: {**own, "p_holm": adjusted[name]} if name in adjusted else own for name, own in measures.items()}


def _compare_distances(base: Arm, soft: Sequence[Arm], name: str) -> dict[str, Any]:
    before, after = base.distances[name], [arm.distances[name] for arm in soft]
    if isinstance(before, NotMeasured):
        return {"not_measured": before.reason}
    return {"base": before, "soft": float(np.mean([own for own in after if not isinstance(own, NotMeasured)]))}


def _by_guidance(arm: Arm) -> dict[str, float]:
    return {f"{guidance:g}": score for guidance, score in arm.validation.items()}
