"""What was measured of a study's points, kept in the repository: points that stand there are not measured again."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from softrepa_pipeline.config import build
from softrepa_pipeline.files import write_whole


@dataclass(frozen=True)
class Measured:
    """One point: its settings by digest, what training it took, and its summaries (`outcome`).

    `expected_decrease` is what its untrained tokens promised (`training.first_step`). `screen` is of one training on
    validation prompts; `confirmed` of several on test prompts, with their seeds and how long they took together; and
    `gains` theirs, of every prompt by task, by which points are compared in pairs.
    """

    digest: str
    date: str
    num_pairs: int
    num_parameters: int
    seconds: float
    expected_decrease: float
    screen: dict[str, Any]
    confirmed: dict[str, Any] | None = None
    gains: dict[str, list[float]] | None = None

    def with_confirmed(self, outcome: dict[str, Any], gains: Mapping[str, Iterable[float]]) -> Measured:
        rounded = {task: [round(float(gain), 4) for gain in own] for task, own in gains.items()}
        return replace(self, confirmed=outcome, gains=rounded)


def outcome(summary: Mapping[str, Any]) -> dict[str, Any]:
    """The part of an evaluation's summary that a study tells; differences are soft − base, with their intervals."""
    tasks, measures = summary["delta"]["tasks"], summary["measures"]
    return {
        "num_prompts": summary["num_prompts"],
        "num_trainings": summary["num_trainings"],
        "base": summary["base"]["overall"],
        "gain": summary["delta"]["overall"],
        "tasks": tasks,
        "repetition": measures["repetition_index"]["delta"],
        "retrieval": measures["denoising_retrieval"]["delta"],
        "distances": {name: own["soft"] - own["base"] for name, own in summary["sets"].items() if "soft" in own},
        "guidance": summary["guidance"],
    }


def read_measured(file: Path) -> dict[str, Measured]:
    """By label, in the order of measuring; nothing where there is no file yet.

    Raises:
        ValueError: the file is not such a record.
    """
    if not file.is_file():
        return {}
    return {label: build(Measured, own, f"{file}: {label}") for label, own in json.loads(file.read_text()).items()}


def kept_by_digest(folder: Path, family: str) -> dict[str, Measured]:
    """All that was measured of a family, whichever study it was for; of two records the confirmed one."""
    records = [own for file in sorted(folder.glob(f"*_{family}.json")) for own in read_measured(file).values()]
    return {own.digest: own for own in sorted(records, key=lambda own: own.confirmed is not None)}


def write_measured(file: Path, measured: Mapping[str, Measured]) -> None:
    """One point a line: a point has thousands of numbers, and a change is of whole points."""
    lines = [f"{json.dumps(label)}: {json.dumps(asdict(own))}" for label, own in measured.items()]
    file.parent.mkdir(parents=True, exist_ok=True)
    write_whole(file, ("{\n" + ",\n".join(lines) + "\n}\n").encode())
