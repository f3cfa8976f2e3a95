"""The tables of an evaluation, for the terminal, the report and docs/results.md."""

from __future__ import annotations

from importlib.resources import files
from typing import Any

import jinja2


def format_table(summary: dict[str, Any]) -> str:
    """Base against soft tokens by task, then by measure; with 95 % intervals of the difference."""
    lines = [f"{summary['decided_by']:<20}{'base':>8}{'soft':>8}   difference [95 % interval]"]
    lines += [_line(row) for row in task_rows(summary)]
    lines += ["", f"{'all measures':<20}{'base':>8}{'soft':>8}   difference [95 % interval], p after Holm"]
    for row in measure_rows(summary):
        lines.append(f"{row['name']:<20}{row['not_measured']}" if row["not_measured"] else f"{_line(row)}, {row['p']}")
    for row in distance_rows(summary):
        values = row["not_measured"] or "{base:>8.3f}{soft:>8.3f}   distance from real images".format(**row)
        lines.append(f"{row['name']:<20}{values}")
    return "\n".join(lines)


def task_rows(summary: dict[str, Any]) -> list[dict[str, Any]]:
    """The deciding score by task and overall, times its scale."""
    base, soft, delta = summary["base"], summary["soft"], summary["delta"]
    by_task = [(task, base["tasks"][task], soft["tasks"][task], own) for task, own in delta["tasks"].items()]
    return [
        _row(*values, summary["scale"])
        for values in [*by_task, ("overall", base["overall"], soft["overall"], delta["overall"])]
    ]


def measure_rows(summary: dict[str, Any]) -> list[dict[str, Any]]:
    """Every measure times its scale, with p corrected for their number, or why it was not measured."""
    rows = []
    for name, own in summary["measures"].items():
        if "not_measured" in own:
            rows.append({"name": name.replace("_", " "), "not_measured": f"not measured: {own['not_measured']}"})
            continue
        row = _row(name, own["base"], own["soft"], own["delta"], own["scale"], own["fewer_is_better"])
        p = "p < 0.001" if own["p_holm"] < 0.001 else f"p = {own['p_holm']:.3f}"
        rows.append({**row, "p": p, "model": own["model"], "not_measured": ""})
    return rows


def distance_rows(summary: dict[str, Any]) -> list[dict[str, Any]]:
    """Every set measure: how far the images are from real ones."""
    return [
        {
            "name": name.replace("_", " "),
            "base": own.get("base"),
            "soft": own.get("soft"),
            "not_measured": f"not measured: {own['not_measured']}" if "not_measured" in own else "",
        }
        for name, own in summary["sets"].items()
    ]


def results_page(families: list[dict[str, Any]]) -> str:
    """docs/results.md: for each family its objectives against the base, by task."""
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True, autoescape=False)
    template = environment.from_string((files(__package__) / "results.md.j2").read_text("utf-8"))
    return template.render(families=[{**family, "rows": _results_rows(family)} for family in families])


def _results_rows(family: dict[str, Any]) -> list[dict[str, Any]]:
    """One row a task, then one a measure: the base, and every objective's difference."""
    summaries = list(family["objectives"].values())
    tables = [
        [*task_rows(own), *(row for row in measure_rows(own)[1:] if not row["not_measured"])] for own in summaries
    ]
    return [{**rows[0], "deltas": [row["delta"] for row in rows]} for rows in zip(*tables, strict=True)]


def _row(
    name: str, base: float, soft: float, delta: dict[str, float], scale: float, fewer_is_better: bool = False
) -> dict[str, Any]:
    up, down = ("worse", "better") if fewer_is_better else ("better", "worse")
    return {
        "name": name.replace("_", " "),
        "base": scale * base,
        "soft": scale * soft,
        "delta": {key: scale * delta[key] for key in ("mean", "low", "high")},
        "digits": 1 if scale > 1 else 2,
        "verdict": up if delta["low"] > 0 else down if delta["high"] < 0 else "unclear",
    }


def _line(row: dict[str, Any]) -> str:
    digits = row["digits"]
    interval = "{mean:+.2f} [{low:+.2f}, {high:+.2f}]".format(**row["delta"])
    return f"{row['name']:<20}{row['base']:>8.{digits}f}{row['soft']:>8.{digits}f}   {interval}"
