"""The tables of docs/editing.md, of what `kedro run --pipeline edit` has written for every family and objective."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

from softrepa_pipeline.evaluation.editing.report import with_interval

_REPORTS = Path("data/08_reporting")
_FAMILIES = {"sd15": "SD1.5", "sdxl": "SDXL", "sd3": "SD3"}
_OBJECTIVES = {"softrepa": "SoftREPA", "agsm": "AGSM", "dsm": "denoising alone"}


def main() -> None:
    """Print one table of gains along the front, then one by start step for every family and method."""
    found: dict[tuple[str, str], dict[str, dict[str, Any]]] = defaultdict(dict)
    sizes = {}
    for file in sorted(_REPORTS.glob("embedded_*/shapes/*/edit.json")):
        summary = json.loads(file.read_text())
        sizes[summary["family"], summary["objective"]] = summary["num_edits"]
        for method, own in summary["methods"].items():
            found[summary["family"], method][summary["objective"]] = own
    print("| base | method | tokens | edits | gain at the same preservation, points | between, dB |")
    print("| --- | --- | --- | ---: | --- | --- |")
    for (family, method), objectives in found.items():
        for objective, own in objectives.items():
            cells = (_FAMILIES[family], f"`{method}`", _OBJECTIVES[objective], sizes[family, objective])
            print("|", *_joined((*cells, *_front(own["front"]))), "|")
    for (family, method), objectives in found.items():
        print(f"\n{_FAMILIES[family]}, `{method}`:\n")
        deltas = [f"{_OBJECTIVES[objective]}: {what}" for objective in objectives for what in ("points", "dB")]
        print("| start step | base: success % | kept dB |", *_joined(deltas), "|")
        print("| ---: | ---: | ---: |", *_joined(["---"] * len(deltas)), "|")
        for step, base in enumerate(next(iter(objectives.values()))["points"]):
            cells = [base["start_step"], f"{100 * base['base']['success']['mean']:.1f}"]
            cells.append(f"{base['base']['kept']['mean']:.1f}")
            for own in objectives.values():
                delta = own["points"][step]["delta"]
                cells += [with_interval(delta["success"], "mean"), with_interval(delta["kept"], "mean", 1)]
            print("|", *_joined(cells), "|")


def _front(front: dict[str, Any] | None) -> tuple[str, str]:
    if front is None:
        return "no preservation in common", ""
    return with_interval(front, "gain"), f"{front['from_db']:.1f} and {front['to_db']:.1f}"


def _joined(cells: Any) -> list[str]:
    return [" | ".join(str(cell) for cell in cells)]


if __name__ == "__main__":
    main()
