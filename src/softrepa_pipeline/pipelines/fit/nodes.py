"""Node of the training stage: soft tokens on a frozen base, tracked while they train."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from softrepa_pipeline import tracking
from softrepa_pipeline.pipelines.fit.follow import following
from softrepa_pipeline.stage import write_json
from softrepa_pipeline.stages import fit
from softrepa_pipeline.training import ExecutionConfig, FitConfig


def fit_tokens(
    pairs: dict[str, Any],
    negatives: dict[str, Any],
    model: dict[str, Any],
    parameters: dict[str, Any],
    execution: dict[str, Any],
    sampling: dict[str, Any],
    folders: dict[str, str],
    runner: dict[str, Any],
    cache: dict[str, Any],
    force: bool,
) -> dict[str, Any]:
    """Train soft tokens on the mined candidates; a stopped run goes on from its last checkpoint."""
    return fit.fit_tokens(
        pairs, negatives, model, parameters, execution, sampling, folders, runner, cache, force, _tracked
    )


@contextmanager
def _tracked(work: Path, config: FitConfig, execution: ExecutionConfig) -> Iterator[str]:
    """A nested run around the training; its id, empty where nothing is tracked."""
    with tracking.nested_run("fit") as run:
        run.log_params({f"fit.{key}": value for key, value in asdict(config).items()})
        run.log_params({f"execution.{key}": value for key, value in asdict(execution).items()})
        _link_to_interrupted(run, work)
        with following(run, work):
            yield run.run_id or ""
        run.log_artifact(work / fit.TOKENS_FILE, "tokens")


def _link_to_interrupted(run: tracking.NestedRun, work: Path) -> None:
    """Tag a resumed run with the one it goes on from, then leave its own id for the next."""
    note = work / "run.json"
    if note.is_file() and any(work.glob("step-*.json")):
        run.set_tag("softrepa.resumed_from", json.loads(note.read_text())["run_id"])
    write_json(note, {"run_id": run.run_id})
