"""Base against soft tokens on edits, as a person reads it: a table, one figure, and one HTML file without network."""

from __future__ import annotations

import io
from dataclasses import asdict
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from softrepa_pipeline.evaluation.editing.compare import ARMS, Comparison
from softrepa_pipeline.evaluation.pixels import data_uri
from softrepa_pipeline.files import write_whole

_EDITS_PER_KIND = 4
_SIDE = 96
_TRIPLETS_PER_KIND = 2
_COLORS = {"base": "#5a6472", "soft": "#1a66c2"}
_LABELS = {"base": "base", "soft": "soft tokens"}
_LABEL_OFFSETS = {"base": (-10, -13), "soft": (5, 5)}
_LINES = ("-", "--")


def format_table(summary: dict[str, Any]) -> str:
    """Each method's success in percent and preservation in dB by start step, with 95 % intervals of the difference."""
    lines = []
    for method, found in summary["methods"].items():
        lines.append(f"{method + ', from':<16}{'success':>13}   soft − base{'':<13}{'kept dB':>13}   soft − base")
        for row in rows(found):
            success, kept = row["success"], row["kept"]
            lines.append(
                f"step {row['name']:<11}{success['base']:>6.1f}{success['soft']:>7.1f}   {success['delta']:<24}"
                f"{kept['base']:>6.1f}{kept['soft']:>7.1f}   {kept['delta']}"
            )
        lines.append(f"{method}: {front_sentence(found['front'])}")
    return "\n".join(lines)


def front_sentence(front: dict[str, Any] | None) -> str:
    if front is None:
        return "the two curves share no preservation"
    between = "between {from_db:.1f} and {to_db:.1f} dB".format(**front)
    return (
        f"at the same preservation, {between}, soft tokens change the success by {with_interval(front, 'gain')} points"
    )


def rows(method: dict[str, Any]) -> list[dict[str, Any]]:
    """One row a start step."""
    return [_row(point["start_step"], point) for point in method["points"]]


def _row(name: Any, point: dict[str, Any], kind: str | None = None) -> dict[str, Any]:
    """Both arms' means, the difference as text and whether its interval excludes 0; of one kind or of all edits."""
    row: dict[str, Any] = {"name": name}
    for measure, factor in (("success", 100), ("kept", 1)):
        base, soft, delta = (
            point[arm][measure]["kinds"][kind] if kind else point[arm][measure] for arm in (*ARMS, "delta")
        )
        row[measure] = {
            "base": factor * base["mean"],
            "soft": factor * soft["mean"],
            "delta": with_interval(delta, "mean", factor),
            "verdict": "better" if delta["low"] > 0 else "worse" if delta["high"] < 0 else "unclear",
        }
    return row


def with_interval(found: dict[str, Any], name: str, factor: float = 100) -> str:
    """`+1.7 [−5.0, +8.3]`: a found value and its bounds, times the factor."""
    # Adding 0 turns what rounds to −0.0 into 0.0.
    values = [round(factor * found[key], 1) + 0.0 for key in (name, "low", "high")]
    return "{:+.1f} [{:+.1f}, {:+.1f}]".format(*values).replace("-", "−")


def draw_front(summary: dict[str, Any]) -> Figure:
    """Success against preservation: one curve a method and arm, one point a start step, with 95 % intervals."""
    figure = Figure(figsize=(4.4, 3.8), layout="constrained")  # small, so that a phone shows its letters large enough
    axes = figure.subplots()
    several = len(summary["methods"]) > 1
    for line, (method, found) in zip(_LINES, summary["methods"].items(), strict=False):
        for arm in ARMS:
            own = [point[arm] for point in found["points"]]
            kept, success = (_with_errors([point[name] for point in own]) for name in ("kept", "success"))
            axes.errorbar(
                kept[0],
                100 * success[0],
                xerr=kept[1],
                yerr=100 * success[1],
                label=f"{_LABELS[arm]}, {method}" if several else _LABELS[arm],
                color=_COLORS[arm],
                linestyle=line,
                marker="o",
                markersize=4,
                capsize=2,
                linewidth=1.5,
                elinewidth=0.6,
            )
            for point, x, y in zip(found["points"], kept[0], 100 * success[0], strict=True):
                step, offset = str(point["start_step"]), _LABEL_OFFSETS[arm]
                axes.annotate(step, (x, y), offset, textcoords="offset points", fontsize=9, color=_COLORS[arm])
    axes.set(xlabel="background kept (dB)", ylabel="success (%)")
    axes.set_ylim(bottom=0)
    figure.legend(loc="outside upper left", ncols=2, frameon=False, handlelength=3)
    return figure


def _with_errors(intervals: list[dict[str, float]]) -> tuple[np.ndarray, np.ndarray]:
    mean, low, high = (np.array([interval[key] for interval in intervals]) for key in ("mean", "low", "high"))
    return mean, np.stack([mean - low, high - mean])


def write_edit_report(comparison: Comparison, summary: dict[str, Any], title: str, path: Path) -> None:
    """Write the HTML report: figure, tables, and edits beside their sources.

    Raises:
        OSError: it could not be written.
    """
    template = jinja2.Environment(autoescape=True).from_string((files(__package__) / "edit.html").read_text("utf-8"))
    buffer = io.BytesIO()
    draw_front(summary).savefig(buffer, format="png", dpi=240)
    methods = [_method(comparison, name, found) for name, found in summary["methods"].items()]
    page = template.render(title=title, summary=summary, figure=data_uri(buffer.getvalue()), methods=methods)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, page.encode())


def triplets(comparison: Comparison, summary: dict[str, Any]) -> list[dict[str, Any]]:
    """A few edits of the first method, source, base and soft, for another page: captions, verdicts and data URIs."""
    name, found = next(iter(summary["methods"].items()))
    return [
        {"kind": group["kind"], **edit, "captions": asdict(edit["captions"])}
        for group in _groups(comparison, name, _best_point(found)["start_step"])
        for edit in group["edits"][:_TRIPLETS_PER_KIND]
    ]


def _best_point(found: dict[str, Any]) -> dict[str, Any]:
    """The start step that succeeds most often."""
    return max(found["points"], key=lambda point: point["base"]["success"]["mean"] + point["soft"]["success"]["mean"])


def _method(comparison: Comparison, name: str, found: dict[str, Any]) -> dict[str, Any]:
    """What the page shows of a method; kinds, measures and pictures from the start step that succeeds most often."""
    best = _best_point(found)
    return {
        "name": name,
        "settings": found["settings"],
        "rows": rows(found),
        "front": front_sentence(found["front"]),
        "shown": best["start_step"],
        "kinds": [_row(kind, best, kind) for kind in best["base"]["success"]["kinds"]],
        "measures": [
            {"name": measure.replace("_", " "), **{arm: best[arm]["measures"][measure] for arm in ARMS}}
            for measure in best["base"]["measures"]
        ],
        "groups": _groups(comparison, name, best["start_step"]),
    }


def _groups(comparison: Comparison, method: str, start: int) -> list[dict[str, Any]]:
    """A few edits of every kind from one start step."""
    outcomes = {arm: comparison.outcomes[method][arm][start] for arm in ARMS}
    groups: dict[str, list[dict[str, Any]]] = {}
    for row, own in enumerate(comparison.edits):
        group = groups.setdefault(own.kind, [])
        if len(group) < _EDITS_PER_KIND:
            arms = [
                {"name": arm, "right": bool(outcome.success[row]), "uri": _picture(outcome.images[row])}
                for arm, outcome in outcomes.items()
            ]
            group.append({"captions": own.captions, "source": _picture(own.image), "arms": arms})
    return [{"kind": kind, "edits": edits} for kind, edits in groups.items()]


def _picture(image: np.ndarray) -> str:
    buffer = io.BytesIO()
    Image.fromarray(image).resize((_SIDE, _SIDE), Image.Resampling.NEAREST).save(buffer, "PNG")
    return data_uri(buffer.getvalue())
