from __future__ import annotations

import numpy as np
import pytest

from softrepa_pipeline.evaluation.statistics import holm, overall, paired_intervals, task_means

TASKS = ["a"] * 60 + ["b"] * 20


def test_overall_is_the_mean_of_task_means() -> None:
    scores = np.concatenate([np.ones((60, 2)), np.zeros((20, 2))])
    assert task_means(scores, TASKS) == {"a": 1.0, "b": 0.0}
    assert overall(scores, TASKS) == 0.5


def simulated(rng: np.random.Generator, gain: float = 0.0) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Verdicts of two models on 6 tasks of 60 prompts, 2 images each: easy and hard prompts, and a planted gain."""
    ease = rng.beta(0.8, 0.8, size=(360, 1))
    base, soft = rng.random((360, 2)) < ease, rng.random((360, 2)) < ease
    missed = np.flatnonzero(~soft)
    chosen = rng.choice(missed, round(gain * soft.size), replace=False)
    soft.flat[chosen] = True
    return base, soft, [f"task {number}" for number in range(6) for _ in range(60)]


def test_between_two_copies_of_a_model_the_interval_covers_zero_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    totals = [paired_intervals(*simulated(rng))[0] for _ in range(200)]
    assert 0.915 <= np.mean([total.low <= 0 <= total.high for total in totals]) <= 0.985
    assert 0.015 <= np.mean([total.p <= 0.05 for total in totals]) <= 0.085


def test_a_planted_gain_of_five_points_is_found() -> None:
    rng = np.random.default_rng(1)
    totals = [paired_intervals(*simulated(rng, gain=0.05))[0] for _ in range(40)]
    assert np.mean([total.low > 0 and total.p < 0.05 for total in totals]) >= 0.6
    assert np.mean([total.mean for total in totals]) == pytest.approx(0.05, abs=0.01)


def test_p_is_the_share_of_sign_flips_that_go_as_far() -> None:
    difference = np.array([0.5, 1.0, -0.25, 0.75, 0.25])
    flips = np.array(np.meshgrid(*[[-1, 1]] * 5)).reshape(5, -1).T
    exact = np.mean(abs(flips @ difference) >= abs(difference.sum()) - 1e-12)
    total, _ = paired_intervals(np.zeros((5, 1)), difference[:, None], ["a"] * 5)
    assert total.p == pytest.approx(exact, abs=0.02)


def test_equal_scores_have_p_1() -> None:
    scores = np.ones((4, 2))
    total, _ = paired_intervals(scores, scores, ["a", "a", "b", "b"])
    assert (total.mean, total.low, total.high, total.p) == (0, 0, 0, 1)


def test_holm_equals_its_definition() -> None:
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005}) == pytest.approx(
        {"a": 0.03, "b": 0.06, "c": 0.06, "d": 0.02}
    )
    assert holm({"a": 0.9, "b": 0.8}) == {"a": 1.0, "b": 1.0}
    assert holm({}) == {}


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
