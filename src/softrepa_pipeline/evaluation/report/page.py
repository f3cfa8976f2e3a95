"""The HTML report."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from softrepa_pipeline.evaluation.evaluate import Evaluation
from softrepa_pipeline.evaluation.pixels import data_uri
from softrepa_pipeline.evaluation.report import figures
from softrepa_pipeline.evaluation.report.tables import distance_rows, measure_rows, task_rows
from softrepa_pipeline.files import write_whole

_PAIRS_PER_GROUP = 12
_SIDE = 128


@dataclass(frozen=True)
class Context:
    """What stands in a report beside the evaluation.

    Which run it was, by name and value; the training's log; and edits with these tokens (`editing.report.triplets`).
    """

    identity: dict[str, str] = field(default_factory=dict)
    training: Sequence[dict[str, float]] = ()
    edits: Sequence[dict[str, Any]] = ()


def write_report(evaluation: Evaluation, context: Context, path: Path) -> None:
    """Write the HTML report: headline, tables, figures, and image pairs side by side, the largest changes first."""
    template = jinja2.Environment(autoescape=True).from_string((files(__package__) / "report.html").read_text("utf-8"))
    summary = evaluation.summary
    page = template.render(
        summary=summary,
        tasks=task_rows(summary),
        measures=measure_rows(summary),
        distances=distance_rows(summary),
        figures=[(title, note, _uri(draw())) for title, note, draw in _figures(summary, context)],
        groups=_groups(evaluation),
        edits=context.edits,
        identity=context.identity,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, page.encode())


def _figures(summary: dict[str, Any], context: Context) -> list[tuple[str, str, Callable[[], Figure]]]:
    """Title, note and drawing of each figure that there is something to draw for."""
    found: list[tuple[str, str, Callable[[], Figure]]] = [
        ("By task", "Lines: 95 % intervals of the difference.", partial(figures.task_bars, summary))
    ]
    if summary["counting"]:
        note = "Percent of the images of a row."
        found.append(("Counting", note, partial(figures.counting, summary)))
    if summary.get("intrinsic"):
        note = "Without drawing, from denoising errors. Bands: 95 % intervals of the difference to the base."
        found.append(("What the errors tell", note, partial(figures.intrinsic, summary)))
    if summary.get("curves"):
        note = "On validation prompts. Bands: 95 % intervals."
        found.append(("Guidance and strength", note, partial(figures.alignment_curves, summary)))
        for name in summary["curves"]["base"][0]["distances"]:
            note = "On validation prompts; up and left is better. Numbers: guidance, or strength."
            found.append((f"Alignment against fidelity: {name}", note, partial(figures.pareto, summary, name)))
    if context.training:
        found.append(("Training", "", partial(figures.training_curves, context.training)))
    return found


def _groups(evaluation: Evaluation) -> list[dict[str, Any]]:
    """Prompts by how much the deciding score changes, with the first image of each model."""
    gain = evaluation.soft.deciding.mean(axis=1) - evaluation.base.deciding.mean(axis=1)
    groups = [("Gained", gain > 0), ("Lost", gain < 0), ("No change", gain == 0)]
    return [
        {
            "title": title,
            "count": int(mask.sum()),
            "pairs": [_pair(evaluation, row, float(gain[row])) for row in _furthest(gain, np.flatnonzero(mask))],
        }
        for title, mask in groups
    ]


def _furthest(gain: np.ndarray, rows: np.ndarray) -> list[int]:
    """The rows that change most; where more change as much, a few evenly over them, so that every task shows."""
    if not len(rows):
        return []
    least = np.sort(abs(gain[rows]))[::-1][:_PAIRS_PER_GROUP][-1]
    candidates = rows[abs(gain[rows]) >= least]
    places = np.linspace(0, len(candidates) - 1, min(len(candidates), _PAIRS_PER_GROUP)).astype(int)
    return sorted((int(candidates[place]) for place in places), key=lambda row: -abs(gain[row]))


def _pair(evaluation: Evaluation, row: int, gain: float) -> dict[str, Any]:
    scale = evaluation.summary["scale"]
    return {
        "prompt": evaluation.benchmark.test.prompts[row].text,
        "gain": scale * gain,
        "images": [
            {"name": name, "score": scale * float(arm.deciding[row, 0]), "uri": _picture(arm.images[row, 0])}
            for name, arm in (("base", evaluation.base), ("soft tokens", evaluation.soft))
        ],
    }


def _picture(image: np.ndarray) -> str:
    picture = Image.fromarray(image)
    if picture.width < _SIDE:
        picture = picture.resize((_SIDE, _SIDE), Image.Resampling.NEAREST)
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return data_uri(buffer.getvalue())


def _uri(figure: Figure) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=160)
    return data_uri(buffer.getvalue())
