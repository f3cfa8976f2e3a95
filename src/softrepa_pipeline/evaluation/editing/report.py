"""Base against soft tokens on edits, as a person reads it: a table, one figure, and one HTML file without network."""

from __future__ import annotations

import base64
import io
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from softrepa_pipeline.evaluation.editing.compare import ARMS, Comparison

_EDITS_PER_KIND = 4
_SIDE = 96
_COLORS = {"base": "#5a6472", "soft": "#1a66c2"}
_LABEL_OFFSETS = {"base": (-10, -12), "soft": (4, 5)}


def format_table(summary: dict[str, Any]) -> str:
    """Success in percent and preservation in dB by start step, with 95 % intervals of the difference."""
    lines = [f"{'start step':<12}{'success':>13}   soft − base{'':<13}{'kept dB':>13}   soft − base"]
    for row in rows(summary):
        success, kept = row["success"], row["kept"]
        lines.append(
            f"{row['start_step']:<12}{success['base']:>6.1f}{success['soft']:>7.1f}   {success['delta']:<24}"
            f"{kept['base']:>6.1f}{kept['soft']:>7.1f}   {kept['delta']}"
        )
    return "\n".join(lines)


def rows(summary: dict[str, Any]) -> list[dict[str, Any]]:
    """One row a start step: both arms' means, the difference as text and whether its interval excludes 0."""
    found = []
    for point in summary["points"]:
        row: dict[str, Any] = {"start_step": point["start_step"]}
        for name, factor in (("success", 100), ("kept", 1)):
            delta = {key: factor * point["delta"][name][key] for key in ("mean", "low", "high")}
            verdict = "better" if delta["low"] > 0 else "worse" if delta["high"] < 0 else "unclear"
            text = "{mean:+.1f} [{low:+.1f}, {high:+.1f}]".format(**delta)
            row[name] = {arm: factor * point[arm][name]["mean"] for arm in ARMS} | {"delta": text, "verdict": verdict}
        found.append(row)
    return found


def draw_front(summary: dict[str, Any]) -> Figure:
    """Success against preservation, one curve an arm and one point a start step, with 95 % intervals."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for arm in ARMS:
        own = [point[arm] for point in summary["points"]]
        kept, success = (_with_errors([point[name] for point in own]) for name in ("kept", "success"))
        axes.errorbar(
            kept[0],
            100 * success[0],
            xerr=kept[1],
            yerr=100 * success[1],
            label={"base": "base", "soft": "with soft tokens"}[arm],
            color=_COLORS[arm],
            marker="o",
            capsize=2,
            linewidth=1.5,
            elinewidth=0.7,
        )
        for point, x, y in zip(summary["points"], kept[0], 100 * success[0], strict=True):
            axes.annotate(str(point["start_step"]), (x, y), _LABEL_OFFSETS[arm], textcoords="offset points", fontsize=8)
    axes.axvline(summary["autoencoder"]["kept"], color="#b8c0cc", linestyle="--", label="autoencoder alone")
    axes.set(xlabel="background kept: PSNR where nothing may change (dB)", ylabel="target caption true (%)")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False)
    return figure


def _with_errors(intervals: list[dict[str, float]]) -> tuple[np.ndarray, np.ndarray]:
    mean, low, high = (np.array([interval[key] for interval in intervals]) for key in ("mean", "low", "high"))
    return mean, np.stack([mean - low, high - mean])


def write_edit_report(comparison: Comparison, title: str, path: Path) -> None:
    """Write the HTML report: table, figure, and edits beside their sources."""
    template = jinja2.Environment(autoescape=True).from_string((files(__package__) / "edit.html").read_text("utf-8"))
    summary = comparison.summary
    buffer = io.BytesIO()
    draw_front(summary).savefig(buffer, format="png", dpi=160)
    best = max(summary["points"], key=lambda point: point["base"]["success"]["mean"] + point["soft"]["success"]["mean"])
    shown = best["start_step"]
    page = template.render(
        title=title,
        summary=summary,
        rows=rows(summary),
        front=summary["front"],
        measures=_measures(best),
        figure=_uri(buffer.getvalue()),
        shown=shown,
        groups=_groups(comparison, shown),
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page)


def _measures(point: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {"name": name.replace("_", " "), **{arm: point[arm]["measures"][name] for arm in ARMS}}
        for name in point["base"]["measures"]
    ]


def _groups(comparison: Comparison, start: int) -> list[dict[str, Any]]:
    """A few edits of every kind from one start step."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for row, own in enumerate(comparison.edits):
        group = groups.setdefault(own.kind, [])
        if len(group) < _EDITS_PER_KIND:
            group.append(
                {
                    "captions": own.captions,
                    "source": _picture(own.image),
                    "arms": [
                        {"name": arm, "right": bool(outcome.success[row]), "uri": _picture(outcome.images[row])}
                        for arm, outcome in ((arm, comparison.outcomes[arm][start]) for arm in ARMS)
                    ],
                }
            )
    return [{"kind": kind, "edits": edits} for kind, edits in groups.items()]


def _picture(image: np.ndarray) -> str:
    buffer = io.BytesIO()
    Image.fromarray(image).resize((_SIDE, _SIDE), Image.Resampling.NEAREST).save(buffer, "PNG")
    return _uri(buffer.getvalue())


def _uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()
