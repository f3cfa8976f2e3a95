"""The figures of an evaluation, wide enough for a page and legible on a phone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from softrepa_pipeline.evaluation.report.tables import task_rows

BASE, SOFT, STRENGTH = "#5a6472", "#1a66c2", "#c2691a"
_NAMES = {"base": "base", "soft": "with soft tokens", "strength": "along strength"}
_COLORS = {"base": BASE, "soft": SOFT, "strength": STRENGTH}
_TRAINING = {
    "loss": "loss",
    "infonce_accuracy": "own caption is nearest, batch",
    "validation_accuracy": "own caption is nearest, validation",
    "gradient_norm": "gradient norm",
}


def task_bars(summary: dict[str, Any]) -> Figure:
    """Both models by task; the bar's line is the 95 % interval of the difference, at the soft tokens' end."""
    rows = task_rows(summary)[::-1]
    figure = Figure(figsize=(6, 0.55 * len(rows) + 1), layout="constrained")
    axes, places = figure.subplots(), np.arange(len(rows))
    base, soft = (np.array([row[arm] for row in rows]) for arm in ("base", "soft"))
    low, high = (base + np.array([row["delta"][bound] for row in rows]) for bound in ("low", "high"))
    axes.barh(places + 0.2, base, 0.38, color=BASE, label="base")
    # Rounding may leave a bound on the wrong side of the mean by its last bit.
    errors = np.maximum([soft - low, high - soft], 0)
    axes.barh(places - 0.2, soft, 0.38, xerr=errors, color=SOFT, label="with soft tokens", capsize=2)
    axes.set_yticks(places, [row["name"] for row in rows])
    axes.set_xlabel(f"{summary['decided_by']}{' (%)' if summary['scale'] == 100 else ''}")
    axes.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2)
    _bare(axes)
    return figure


def alignment_curves(summary: dict[str, Any]) -> Figure:
    """The deciding score along guidance, for both models, and along the strength of the tokens."""
    figure = Figure(figsize=(6, 3), layout="constrained")
    along_guidance, along_strength = figure.subplots(1, 2, sharey=True)
    for arm in ("base", "soft"):
        _curve(along_guidance, summary, arm, "guidance")
    _curve(along_strength, summary, "strength", "strength")
    along_guidance.set(xlabel="guidance", ylabel=f"{summary['decided_by']}, validation prompts")
    along_guidance.legend(frameon=False, fontsize=8)
    along_strength.set(xlabel="strength of the tokens")
    for axes in (along_guidance, along_strength):
        _bare(axes)
    return figure


def pareto(summary: dict[str, Any], measure: str) -> Figure:
    """Alignment against a distance from real images; the better, the further up and left."""
    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axes = figure.subplots()
    for arm, points in summary["curves"].items():
        taken = [point for point in points if measure in point["distances"]]
        setting = "strength" if arm == "strength" else "guidance"
        x = [point["distances"][measure] for point in taken]
        y = [summary["scale"] * point["alignment"]["mean"] for point in taken]
        axes.plot(x, y, marker="o", color=_COLORS[arm], label=_NAMES[arm], linewidth=1.2)
        for point, place in zip(taken, zip(x, y, strict=True), strict=True):
            axes.annotate(f"{point[setting]:g}", place, (4, 4), textcoords="offset points", fontsize=7)
    axes.set(xlabel=f"{measure}: distance from real images", ylabel=f"{summary['decided_by']}, validation prompts")
    axes.legend(frameon=False, fontsize=8)
    _bare(axes)
    return figure


def training_curves(records: Sequence[dict[str, float]]) -> Figure:
    """What the training log holds of loss, retrieval and gradients, by step."""
    shown = [name for name in _TRAINING if any(name in record for record in records)]
    figure = Figure(figsize=(6, 1.7 * len(shown)), layout="constrained")
    for axes, name in zip(figure.subplots(len(shown), 1, sharex=True, squeeze=False)[:, 0], shown, strict=True):
        own = [(record["step"], record[name]) for record in records if name in record]
        steps, values = (np.array(column) for column in zip(*own, strict=True))
        axes.plot(steps, values, color=SOFT, linewidth=0.8)
        axes.set_title(_TRAINING[name], fontsize=9, loc="left")
        _bare(axes)
    axes.set_xlabel("step")
    return figure


def _curve(axes: Axes, summary: dict[str, Any], arm: str, setting: str) -> None:
    """One curve with its intervals."""
    points = summary["curves"][arm]
    x = [point[setting] for point in points]
    mean, low, high = (
        np.array([summary["scale"] * point["alignment"][key] for point in points]) for key in ("mean", "low", "high")
    )
    axes.plot(x, mean, marker="o", color=_COLORS[arm], label=_NAMES[arm], linewidth=1.2)
    axes.fill_between(x, low, high, color=_COLORS[arm], alpha=0.15, linewidth=0)


def _bare(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
