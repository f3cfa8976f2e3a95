"""A study's page: its question, the reading that a person wrote, and a figure and tables of every family measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from scipy.stats import spearmanr

from softrepa_pipeline.evaluation.statistics import gain_intervals
from softrepa_pipeline.files import write_whole
from softrepa_pipeline.studies.figures import draw_curves, draw_rows, save_figure
from softrepa_pipeline.studies.measured import Measured
from softrepa_pipeline.studies.study import Study

READING = "## Reading"
MEASURED = "## How it was measured"


def write_page(study: Study, families: Mapping[str, Mapping[str, Measured]], folder: Path) -> Path:
    """Write `<study>.md` and a figure of each family into the folder; the section READING stays as it is."""
    page = folder / f"{study.name}.md"
    for family, measured in families.items():
        figure = draw_curves(study.curves, measured) if study.curves else draw_rows(measured)
        save_figure(figure, folder / f"{study.name}_{family}.svg")
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True, autoescape=False)
    template = environment.from_string((files(__package__) / "page.md.j2").read_text("utf-8"))
    told = {family: _told(study, measured) for family, measured in families.items()}
    text = template.render(study=study, families=told, reading=_reading(page), measured=MEASURED)
    write_whole(page, f"{text.rstrip()}\n".encode())
    return page


def _reading(page: Path) -> str:
    """What a person wrote between READING and MEASURED; of a page without the latter, to its end."""
    written = page.read_text("utf-8") if page.is_file() else ""
    _, heading, rest = written.partition(READING)
    return heading + rest.partition(f"\n{MEASURED}\n")[0].rstrip() if heading else f"{READING}\n\nNot written yet."


def _told(study: Study, measured: Mapping[str, Measured]) -> dict[str, Any]:
    # By settings: some families have two names for one.
    ranked = {own.digest: own for label, own in measured.items() if label not in (study.unranked or ())}.values()
    told: dict[str, Any] = {
        "screened": [_row(label, own, own.screen) for label, own in measured.items()],
        "confirmed": [_confirmed_row(label, own) for label, own in measured.items() if own.confirmed],
        "paired": _paired(study, measured),
        "num_ranked": len(ranked),
        "correlation": None,
    }
    expected = [own.expected_decrease for own in ranked]
    if study.unranked is not None and len(set(expected)) > 2:
        told["correlation"] = spearmanr(expected, [own.screen["gain"]["mean"] for own in ranked])
    return told


def _paired(study: Study, measured: Mapping[str, Measured]) -> list[dict[str, Any]]:
    """What confirmed points gain more than the first reference, pairing their prompts.

    On another world a point's prompts are others than the reference's: the interval is then as wide as unpaired, and
    where they are fewer there is none.
    """
    known = {label: own.gains for label, own in measured.items() if own.gains is not None}
    control = known.pop(study.references[0], None) if study.references else None
    if control is None:
        return []
    sizes = {task: len(own) for task, own in control.items()}
    rows = []
    for label, gains in known.items():
        if {task: len(own) for task, own in gains.items()} != sizes:
            continue
        total, by_task = gain_intervals({task: np.subtract(own, control[task]) for task, own in gains.items()})
        deltas = {"all": total, **by_task}
        rows.append({"label": label, "tasks": {task: _interval(asdict(delta)) for task, delta in deltas.items()}})
    return rows


def _row(label: str, own: Measured, outcome: Mapping[str, Any]) -> dict[str, Any]:
    repetition = outcome["repetition"]
    return {
        "label": label,
        "pairs": f"{own.num_pairs / 1000:.0f} k",
        "parameters": own.num_parameters,
        "promise": f"{1000 * own.expected_decrease:.1f}",
        "minutes": f"{own.seconds / 60:.1f}",
        "gain": _interval(outcome["gain"]),
        "tasks": {task: _interval(delta) for task, delta in outcome["tasks"].items()},
        "retrieval": _interval(outcome["retrieval"]),
        "repetition": "{mean:+.3f} [{low:+.3f}, {high:+.3f}]".format(**repetition),
        "distances": ", ".join(f"{value:+.3f}" for value in outcome["distances"].values()),
        "guidance": _guidance(outcome["guidance"]),
    }


def _confirmed_row(label: str, own: Measured) -> dict[str, Any]:
    outcome = own.confirmed
    assert outcome is not None
    seconds = outcome["seconds"]
    return {
        **_row(label, own, outcome),
        "seeds": ", ".join(map(str, outcome["seeds"])),
        "prompts": outcome["num_prompts"],
        "minutes": "–" if seconds is None else f"{seconds / 60:.1f}",
    }


def _interval(delta: Mapping[str, float]) -> str:
    return "{mean:+.1f} [{low:+.1f}, {high:+.1f}]".format(**{name: 100 * value for name, value in delta.items()})


def _guidance(chosen: Mapping[str, Any]) -> str:
    """The base's scale, and those of trainings where one is another."""
    base, soft = f"{chosen['base']:g}", [f"{scale:g}" for scale in chosen["soft"]]
    return base if set(soft) == {base} else f"{base} → {', '.join(dict.fromkeys(soft))}"
