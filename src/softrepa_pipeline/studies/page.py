"""A study's page: its question, a figure and a table of every family measured, and the reading that a person wrote."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.stats import spearmanr

from softrepa_pipeline.files import write_whole
from softrepa_pipeline.studies.measured import Measured
from softrepa_pipeline.studies.study import Study

READING = "## Reading"
# Of a point's outcomes: label, colour, and how far its dot is above the point's place.
_STAGES = {"screen": ("screened", "#9aa5b1", 0.14), "confirmed": ("confirmed", "#1a66c2", -0.14)}
_PANELS = (("gain", "alignment (points)"), ("counting", "counting (points)"))


def write_page(study: Study, families: Mapping[str, Mapping[str, Measured]], folder: Path) -> Path:
    """Write `<study>.md` and a figure of each family into the folder; what stands below READING stays as it is."""
    page = folder / f"{study.name}.md"
    for family, measured in families.items():
        _save(_figure(measured), folder / f"{study.name}_{family}.svg")
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True, autoescape=False)
    template = environment.from_string((files(__package__) / "page.md.j2").read_text("utf-8"))
    told = {family: _told(measured) for family, measured in families.items()}
    generated = template.render(study=study, families=told)
    write_whole(page, f"{generated.rstrip()}\n\n{_reading(page)}".encode())
    return page


def _reading(page: Path) -> str:
    written = page.read_text("utf-8") if page.is_file() else ""
    _, heading, reading = written.partition(READING)
    return heading + reading if heading else f"{READING}\n\nNot written yet.\n"


def _told(measured: Mapping[str, Measured]) -> dict[str, Any]:
    rows = [_row(label, own) for label, own in measured.items()]
    told = {"rows": rows, "tasks": list(dict.fromkeys(task for row in rows for task in row["tasks"]))}
    expected = [own.expected_decrease for own in measured.values()]
    if len(set(expected)) < 3:
        return {**told, "correlation": None}
    gains = [own.screen["gain"]["mean"] for own in measured.values()]
    return {**told, "correlation": spearmanr(expected, gains)}


def _row(label: str, own: Measured) -> dict[str, Any]:
    told = own.confirmed or own.screen
    return {
        "label": label,
        "pairs": f"{own.num_pairs / 1000:.0f} k",
        "parameters": own.num_parameters,
        "expected": f"{1000 * own.expected_decrease:.1f}",
        "minutes": own.seconds / 60,
        "screen": _interval(own.screen["gain"]),
        "confirmed": _interval(own.confirmed["gain"]) if own.confirmed else "",
        "tasks": {task: _interval(delta) for task, delta in told["tasks"].items()},
        "retrieval": _interval(told["retrieval"]),
        "repetition": told["repetition"]["mean"],
        "distances": ", ".join(f"{value:+.3f}" for value in told["distances"].values()),
        "guidance": ", ".join(f"{scale:g}" for scale in dict.fromkeys(told["guidance"]["soft"])),
    }


def _interval(delta: Mapping[str, float]) -> str:
    return "{mean:+.1f} [{low:+.1f}, {high:+.1f}]".format(**{name: 100 * value for name, value in delta.items()})


def _figure(measured: Mapping[str, Measured]) -> Figure:
    """Differences from the base with 95 % intervals, a row a point; screened ones grey, confirmed ones blue."""
    figure = Figure(figsize=(8, 0.3 * len(measured) + 1.2), layout="constrained")
    labels = list(measured)
    for axes, (name, title) in zip(figure.subplots(1, 2, sharey=True), _PANELS, strict=True):
        axes.axvline(0, color="#d0d4d9", linewidth=1)
        for stage, (label, color, offset) in _STAGES.items():
            outcomes = [(place, getattr(own, stage)) for place, own in enumerate(measured.values())]
            deltas = [(place - offset, _delta(own, name)) for place, own in outcomes if own is not None]
            if deltas:
                _dots(axes, deltas, color, label)
        axes.set_xlabel(title)
        axes.spines[["top", "right", "left"]].set_visible(False)
    axes.set_yticks(range(len(labels)), labels)
    axes.invert_yaxis()
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=2, frameon=False, fontsize=8)
    return figure


def _delta(own: Mapping[str, Any], name: str) -> Mapping[str, float]:
    return own["gain"] if name == "gain" else own["tasks"][name]


def _dots(axes: Axes, deltas: Sequence[tuple[float, Mapping[str, float]]], color: str, label: str) -> None:
    places = [place for place, _ in deltas]
    mean, low, high = (100 * np.array([delta[key] for _, delta in deltas]) for key in ("mean", "low", "high"))
    errors = np.maximum([mean - low, high - mean], 0)
    axes.errorbar(mean, places, xerr=errors, fmt="o", color=color, markersize=4, linewidth=1, label=label)


def _save(figure: Figure, file: Path) -> None:
    """The same bytes for the same figure."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context({"svg.hashsalt": "study", "svg.fonttype": "none"}):
        figure.savefig(file, metadata={"Date": None})
