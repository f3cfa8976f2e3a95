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
    """Alignment against a set measure: for a distance from real images, the better, the further up and left."""
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
    axes.set(xlabel=measure, ylabel=f"{summary['decided_by']}, validation prompts")
    axes.legend(frameon=False, fontsize=8)
    _bare(axes)
    return figure


def counting(summary: dict[str, Any]) -> Figure:
    """Counts asked for against counts drawn, in percent of a row, for both models."""
    own = summary["counting"]
    figure = Figure(figsize=(6, 0.5 * len(own["asked"]) + 1.4), layout="constrained")
    for axes, arm in zip(figure.subplots(1, 2, sharey=True), ("base", "soft"), strict=True):
        images = np.array(own[arm])
        shares = 100 * images / images.sum(axis=1, keepdims=True)
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=100, aspect="auto")
        for row, column in np.ndindex(*shares.shape):
            dark = shares[row, column] > 60
            axes.text(
                column, row, f"{shares[row, column]:.0f}", ha="center", va="center", color="white" if dark else "black"
            )
        axes.set_xticks(range(len(own["drawn"])), own["drawn"])
        axes.set_yticks(range(len(own["asked"])), own["asked"])
        axes.set(title=_NAMES[arm], xlabel="drawn")
        axes.set_ylabel("asked for" if arm == "base" else "")
    return figure


def intrinsic(summary: dict[str, Any]) -> Figure:
    """Denoising retrieval and InfoNCE's bound by noise level, for both models, and by how many layers have tokens."""
    own = summary["intrinsic"]
    figure = Figure(figsize=(6, 4.6), layout="constrained")
    panels = figure.subplots(2, 2, sharey="row")
    for (by_level, by_depth), (name, label, scale) in zip(
        panels, (("hits", "own caption nearest (%)", 100), ("information", "information (nats)", 1)), strict=True
    ):
        for arm in ("base", "soft"):
            values = [scale * point[arm] for point in own["by_level"][name]]
            by_level.plot(own["levels"], values, marker="o", markersize=3, color=_COLORS[arm], label=_NAMES[arm])
        points = own["by_depth"][name]
        mean = np.array([scale * point["soft"] for point in points])
        base = scale * points[0]["base"]
        low, high = (base + scale * np.array([point["delta"][bound] for point in points]) for bound in ("low", "high"))
        by_depth.plot(range(len(points)), mean, marker="o", markersize=3, color=SOFT)
        by_depth.fill_between(range(len(points)), low, high, color=SOFT, alpha=0.15, linewidth=0)
        by_level.set_ylabel(label)
        for axes in (by_level, by_depth):
            _bare(axes)
    panels[0, 0].legend(frameon=False, fontsize=8)
    panels[1, 0].set_xlabel("noise level")
    panels[1, 1].set_xlabel("first layers with tokens")
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
