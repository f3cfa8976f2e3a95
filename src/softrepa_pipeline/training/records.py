"""What a run writes down of itself: one JSON line a step."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from softrepa_pipeline.files import write_whole
from softrepa_pipeline.objectives import is_retrieved
from softrepa_pipeline.training.pair_engine import PairResult

Record = dict[str, float]


def sums_of(results: list[PairResult]) -> Record:
    """Sums over a process's images of what a step is judged by; divided by the batch size they are means."""
    errors = torch.cat([result.errors for result in results])
    is_candidate = torch.cat([result.is_candidate for result in results])
    sums = {"loss": _sum(result.losses.loss for result in results)}
    for name in results[0].losses.measures:
        sums[name] = _sum(result.losses.measures[name] for result in results)
    sums["gradient_weight"] = _sum(result.gradient_weight for result in results)
    sums["error_positive"] = errors[:, 0].sum().item()
    if errors.shape[1] > 1:
        sums["error_negative"] = errors[:, 1:].mean(dim=1).sum().item()
        sums["infonce_accuracy"] = is_retrieved(errors, is_candidate).sum().item()
    return sums


def log_of(folder: Path, step: int, on_record: Callable[[Record], None]) -> Path:
    """`folder/metrics.jsonl`, cut back to what a checkpoint at `step` has seen; what it holds is reported again."""
    log = folder / "metrics.jsonl"
    folder.mkdir(parents=True, exist_ok=True)
    kept = [record for record in read(log) if record["step"] < step]
    write_whole(log, "".join(json.dumps(record) + "\n" for record in kept).encode())
    for record in kept:
        on_record(record)
    return log


def read(file: Path) -> list[dict[str, Any]]:
    """The whole lines of a log, oldest first; none where there is no such file."""
    lines = file.read_text().splitlines() if file.is_file() else []
    return [json.loads(line) for line in lines if line.endswith("}")]


def append(file: Path, record: Mapping[str, object]) -> None:
    """Add a line to a log.

    Raises:
        OSError: it could not be written, and no part of it is; the error names the file, as a full disk's own does not.
    """
    size = file.stat().st_size if file.is_file() else 0
    try:
        with file.open("a") as stream:
            stream.write(json.dumps(record) + "\n")
    except OSError as error:
        if file.is_file():
            os.truncate(file, size)  # or the next line would go on where this one broke off
        raise OSError(error.errno, error.strerror, str(file)) from error


def _sum(values: Iterable[Tensor]) -> float:
    return sum(value.sum().item() for value in values)
