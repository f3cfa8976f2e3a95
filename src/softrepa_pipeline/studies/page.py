"""A study's page: its question, a figure and a table of every family measured, and the reading that a person wrote."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
from scipy.stats import spearmanr

from softrepa_pipeline.files import write_whole
from softrepa_pipeline.studies.figures import draw_curves, draw_rows, save_figure
from softrepa_pipeline.studies.measured import Measured
from softrepa_pipeline.studies.study import Study

READING = "## Reading"


def write_page(study: Study, families: Mapping[str, Mapping[str, Measured]], folder: Path) -> Path:
    """Write `<study>.md` and a figure of each family into the folder; what stands below READING stays as it is."""
    page = folder / f"{study.name}.md"
    for family, measured in families.items():
        figure = draw_curves(study.curves, measured) if study.curves else draw_rows(measured)
        save_figure(figure, folder / f"{study.name}_{family}.svg")
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
