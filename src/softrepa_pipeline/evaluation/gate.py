"""Whether a challenger may take the champion's place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class GateConfig:
    """What a challenger must show; scores in the deciding scorer's own unit (0.01 is a point of the verifier's).

    Alignment must gain more than `min_gain`, and counting lose no more than `counting_margin`, each with the low end
    of its interval. Denoising retrieval on fresh images may lose `fresh_margin`, and each distance from real images
    grow by `fidelity_margin`, a share. Of the new data ingestion and the poison screen may have taken out
    `max_bad_share`.
    """

    min_gain: float = 0.0
    counting_margin: float = 0.05
    fresh_margin: float = 0.05
    fidelity_margin: float = 0.25
    max_bad_share: float = 0.15

    def __post_init__(self) -> None:
        for name in ("counting_margin", "fresh_margin", "fidelity_margin", "max_bad_share"):
            if getattr(self, name) < 0:
                raise ValueError(f"gate.{name} must be 0 or more, not {getattr(self, name)}")


@dataclass(frozen=True)
class Check:
    """One condition, what was found, and whether it holds."""

    name: str
    holds: bool
    found: str


def check_quality(config: GateConfig, summary: Mapping[str, Any], fresh: float | None) -> list[Check]:
    """The challenger (`soft`) against the champion (`base`), by the summary of their evaluation.

    `fresh` is the difference of their retrieval on new images that no training has seen, None where there are none.
    """
    total = summary["delta"]["overall"]
    checks = [Check("alignment", total["low"] > config.min_gain, _interval(total))]
    if "counting" in summary["delta"]["tasks"]:
        counting = summary["delta"]["tasks"]["counting"]
        checks.append(Check("counting", counting["low"] >= -config.counting_margin, _interval(counting)))
    for name, own in summary["sets"].items():
        if "not_measured" not in own:
            holds = own["soft"] <= own["base"] * (1 + config.fidelity_margin)
            checks.append(Check(name, holds, f"{own['base']:.3f} before, {own['soft']:.3f} now"))
    if fresh is not None:
        checks.append(Check("retrieval on fresh images", fresh >= -config.fresh_margin, f"{fresh:+.3f}"))
    return checks


def check_data(config: GateConfig, num_bad: int, num_samples: int) -> Check:
    """The new samples: how many of them ingestion and the poison screen took out."""
    share = num_bad / max(1, num_samples)
    return Check("new data", share <= config.max_bad_share, f"{num_bad} of {num_samples} taken out ({share:.0%})")


def _interval(delta: Mapping[str, float]) -> str:
    return "{mean:+.3f} [{low:+.3f}, {high:+.3f}]".format(**delta)
