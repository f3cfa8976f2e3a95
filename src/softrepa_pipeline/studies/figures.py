"""A study's figures: what each point gains over the base, in points, with 95 % intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from softrepa_pipeline.studies.measured import Measured

# Of a point's outcomes: label, colour, and how far its dot is above the point's place.
_STAGES = {"screen": ("screened", "#9aa5b1", 0.14), "confirmed": ("confirmed", "#1a66c2", -0.14)}
_PANELS = (("gain", "alignment (points)"), ("counting", "counting (points)"))
_ZERO: dict[str, Any] = {"color": "#d0d4d9", "linewidth": 1}
_DOT: dict[str, Any] = {"markersize": 4, "linewidth": 1}


def draw_rows(measured: Mapping[str, Measured]) -> Figure:
    """A row a point; screened gains grey, confirmed ones blue."""
    figure = Figure(figsize=(8, 0.3 * len(measured) + 1.2), layout="constrained")
    labels = list(measured)
    for axes, (name, title) in zip(figure.subplots(1, 2, sharey=True), _PANELS, strict=True):
        axes.axvline(0, **_ZERO)
        for stage, (label, color, offset) in _STAGES.items():
            outcomes = [(place - offset, getattr(own, stage)) for place, own in enumerate(measured.values())]
            told = {place: own for place, own in outcomes if own is not None}
            if told:
                mean, errors = _bounds([_delta(own, name) for own in told.values()])
                axes.errorbar(mean, list(told), xerr=errors, fmt="o", color=color, label=label, **_DOT)
        axes.set_xlabel(title)
        axes.spines[["top", "right", "left"]].set_visible(False)
    axes.set_yticks(range(len(labels)), labels)
    axes.invert_yaxis()
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=2, frameon=False, fontsize=8)
    return figure


def draw_curves(curves: Mapping[str, Mapping[str, float | None]], measured: Mapping[str, Measured]) -> Figure:
    """Screened gains against the quantity of every curve, on logarithmic axes; points not measured yet are left out."""
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    grid = figure.subplots(len(_PANELS), len(curves), sharex="col", sharey="row", squeeze=False)
    for column, (quantity, places) in zip(grid.T, curves.items(), strict=True):
        told = [(measured[label], place) for label, place in places.items() if label in measured]
        own = {point.num_pairs if place is None else place: point.screen for point, place in told}
        for axes, (name, _) in zip(column, _PANELS, strict=True):
            axes.axhline(0, **_ZERO)
            axes.set_xscale("log")
            axes.set_xticks(list(own), [f"{place:g}" for place in own])
            axes.xaxis.set_minor_locator(NullLocator())
            mean, errors = _bounds([_delta(screened, name) for screened in own.values()])
            axes.errorbar(list(own), mean, yerr=errors, fmt="o-", color=_STAGES["screen"][1], **_DOT)
            axes.spines[["top", "right"]].set_visible(False)
        column[-1].set_xlabel(quantity)
    for axes, (_, title) in zip(grid[:, 0], _PANELS, strict=True):
        axes.set_ylabel(title)
    return figure


def _delta(own: Mapping[str, Any], name: str) -> Mapping[str, float]:
    return own["gain"] if name == "gain" else own["tasks"][name]


def _bounds(deltas: Sequence[Mapping[str, float]]) -> tuple[np.ndarray, np.ndarray]:
    """Means (N,) in points, and how far their intervals reach below and above (2, N)."""
    mean, low, high = (100 * np.array([delta[key] for delta in deltas]) for key in ("mean", "low", "high"))
    return mean, np.maximum([mean - low, high - mean], 0)


def save_figure(figure: Figure, file: Path) -> None:
    """The same bytes for the same figure."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context({"svg.hashsalt": "study", "svg.fonttype": "none"}):
        figure.savefig(file, metadata={"Date": None})
