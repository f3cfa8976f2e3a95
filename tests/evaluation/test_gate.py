from __future__ import annotations

from typing import Any

import pytest

from softrepa_pipeline.evaluation.gate import GateConfig, check_data, check_quality


def summary(gain: float = 0.03, counting: float = 0.0, distance: float = 1.0) -> dict[str, Any]:
    """A challenger whose intervals are two points wide on each side."""

    def interval(mean: float) -> dict[str, float]:
        return {"mean": mean, "low": mean - 0.02, "high": mean + 0.02}

    return {
        "delta": {"overall": interval(gain), "tasks": {"counting": interval(counting)}},
        "sets": {"cmmd": {"base": 1.0, "soft": distance}, "fd_dinov2": {"not_measured": "no weights"}},
    }


def failed(found: dict[str, Any], fresh: float | None = 0.0) -> list[str]:
    return [check.name for check in check_quality(GateConfig(), found, fresh) if not check.holds]


def test_a_better_challenger_passes() -> None:
    assert failed(summary()) == []
    assert failed(summary(), fresh=None) == []


@pytest.mark.parametrize(
    ("found", "fresh", "reason"),
    [
        (summary(gain=0.019), 0.0, "alignment"),
        (summary(gain=0.02), 0.0, "alignment"),
        (summary(counting=-0.031), 0.0, "counting"),
        (summary(distance=1.26), 0.0, "cmmd"),
        (summary(), -0.06, "retrieval on fresh images"),
    ],
)
def test_each_condition_alone_keeps_the_champion(found: dict[str, Any], fresh: float, reason: str) -> None:
    assert failed(found, fresh) == [reason]


def test_too_much_bad_data_keeps_the_champion() -> None:
    assert check_data(GateConfig(), 15, 100).holds
    check = check_data(GateConfig(), 20, 100)
    assert not check.holds
    assert check.found == "20 of 100 taken out (20%)"
    assert check_data(GateConfig(), 0, 0).holds


def test_prompts_without_counting_are_judged_by_the_rest() -> None:
    found = summary()
    del found["delta"]["tasks"]["counting"]
    assert [check.name for check in check_quality(GateConfig(), found, None)] == ["alignment", "cmmd"]


def test_a_negative_margin_is_refused() -> None:
    with pytest.raises(ValueError, match=r"gate\.counting_margin must be 0 or more"):
        GateConfig(counting_margin=-0.1)
