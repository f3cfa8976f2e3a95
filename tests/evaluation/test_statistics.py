from __future__ import annotations

import numpy as np
import pytest

from softrepa_pipeline.evaluation.statistics import overall, paired_intervals, task_means

TASKS = ["a"] * 60 + ["b"] * 20


def test_overall_is_the_mean_of_task_means() -> None:
    scores = np.concatenate([np.ones((60, 2)), np.zeros((20, 2))])
    assert task_means(scores, TASKS) == {"a": 1.0, "b": 0.0}
    assert overall(scores, TASKS) == 0.5


def test_interval_covers_zero_for_equal_models_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    covered = []
    for _ in range(60):
        base, soft = (rng.random((80, 2)) < 0.5 for _ in range(2))
        total, _ = paired_intervals(base, soft, TASKS)
        covered.append(total.low <= 0 <= total.high)
    assert 0.85 <= np.mean(covered) <= 1.0


def test_a_planted_gain_is_found_in_its_task_alone() -> None:
    rng = np.random.default_rng(1)
    base = rng.random((80, 4)) < 0.4
    soft = base.copy()
    soft[:60] |= rng.random((60, 4)) < 0.3
    total, by_task = paired_intervals(base, soft, TASKS)
    assert by_task["a"].low > 0
    assert by_task["b"].mean == by_task["b"].low == by_task["b"].high == 0
    assert total.mean == pytest.approx(by_task["a"].mean / 2)
    assert total.low < total.mean < total.high


def test_intervals_are_the_same_twice() -> None:
    rng = np.random.default_rng(2)
    base, soft = (rng.random((80, 1)) < 0.5 for _ in range(2))
    assert paired_intervals(base, soft, TASKS) == paired_intervals(base, soft, TASKS)
