"""The evaluation as a person reads it: a table in the terminal, and one HTML file that needs no network."""

from __future__ import annotations

import base64
import io
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from PIL import Image

from softrepa_pipeline.evaluation.evaluate import Evaluation

_PAIRS_PER_GROUP = 12
_SIDE = 128


def format_table(summary: dict[str, Any]) -> str:
    """Base against soft tokens by task, in percent, then by scorer; with 95 % intervals of the difference."""
    lines = [f"{'task':<18}{'base':>7}{'soft':>7}   difference [95 % interval]"]
    for task in (*summary["delta"]["tasks"], "overall"):
        row = _row(summary, task)
        interval = "{mean:+.1f} [{low:+.1f}, {high:+.1f}]".format(**row["delta"])
        lines.append(f"{row['task']:<18}{row['base']:>7.1f}{row['soft']:>7.1f}   {interval}")
    for name, score in summary["scores"].items():
        if "not_measured" in score:
            lines.append(f"{name:<18}not measured: {score['not_measured']}")
            continue
        interval = "{mean:+.3f} [{low:+.3f}, {high:+.3f}]".format(**score["delta"])
        lines.append(f"{name:<18}{score['base']:>7.2f}{score['soft']:>7.2f}   {interval}")
    return "\n".join(lines)


def results_page(families: list[dict[str, Any]]) -> str:
    """docs/results.md: for each family its objectives against the base, by task."""
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True, autoescape=False)
    template = environment.from_string((files(__package__) / "results.md.j2").read_text("utf-8"))
    return template.render(families=[{**family, "rows": _results_rows(family)} for family in families])


def _results_rows(family: dict[str, Any]) -> list[dict[str, Any]]:
    """One row a task: the base, and every objective's difference."""
    summaries = list(family["objectives"].values())
    rows = []
    for task in (*summaries[0]["delta"]["tasks"], "overall"):
        own = [_row(summary, task) for summary in summaries]
        rows.append({"task": own[0]["task"], "base": own[0]["base"], "deltas": [row["delta"] for row in own]})
    return rows


def write_report(evaluation: Evaluation, path: Path) -> None:
    """Write the HTML report: headline, table, and image pairs side by side, best and worst prompts first."""
    template = jinja2.Environment(autoescape=True).from_string((files(__package__) / "report.html").read_text("utf-8"))
    path.parent.mkdir(parents=True, exist_ok=True)
    summary = evaluation.summary
    path.write_text(
        template.render(
            summary=summary,
            rows=[_row(summary, task) for task in (*summary["delta"]["tasks"], "overall")],
            groups=_groups(evaluation),
        )
    )


def _score(arm: dict[str, Any], task: str) -> float:
    return arm["overall"] if task == "overall" else arm["tasks"][task]


def _row(summary: dict[str, Any], task: str) -> dict[str, Any]:
    delta = summary["delta"]["overall"] if task == "overall" else summary["delta"]["tasks"][task]
    verdict = "better" if delta["low"] > 0 else "worse" if delta["high"] < 0 else "unclear"
    return {
        "task": task.replace("_", " "),
        "base": 100 * _score(summary["base"], task),
        "soft": 100 * _score(summary["soft"], task),
        "delta": {key: 100 * value for key, value in delta.items()},
        "verdict": verdict,
    }


def _groups(evaluation: Evaluation) -> list[dict[str, Any]]:
    base, soft = evaluation.base.verdicts[:, 0], evaluation.soft.verdicts[:, 0]
    groups = [
        ("Gained: wrong before, right with soft tokens", ~base & soft),
        ("Lost: right before, wrong with soft tokens", base & ~soft),
        ("Right with both", base & soft),
        ("Wrong with both", ~base & ~soft),
    ]
    return [
        {
            "title": title,
            "count": int(mask.sum()),
            "pairs": [_pair(evaluation, row) for row in _spread(np.flatnonzero(mask))],
        }
        for title, mask in groups
    ]


def _spread(rows: np.ndarray) -> list[int]:
    """A few rows, evenly over the prompts, so that every task shows."""
    if len(rows) <= _PAIRS_PER_GROUP:
        return [int(row) for row in rows]
    return [int(rows[i]) for i in np.linspace(0, len(rows) - 1, _PAIRS_PER_GROUP).astype(int)]


def _pair(evaluation: Evaluation, row: int) -> dict[str, Any]:
    return {
        "prompt": evaluation.prompts[row].text,
        "images": [
            {"name": name, "right": bool(arm.verdicts[row, 0]), "uri": _data_uri(arm.images[row, 0])}
            for name, arm in (("base", evaluation.base), ("soft tokens", evaluation.soft))
        ],
    }


def _data_uri(image: np.ndarray) -> str:
    picture = Image.fromarray(image)
    if picture.width < _SIDE:
        picture = picture.resize((_SIDE, _SIDE), Image.Resampling.NEAREST)
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
