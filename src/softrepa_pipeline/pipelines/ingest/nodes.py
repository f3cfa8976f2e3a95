"""Nodes of the ingest stage: the embedded world, and clean pairs from whatever data set is chosen."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from softrepa_pipeline import tracking
from softrepa_pipeline.config import build
from softrepa_pipeline.ingestion import IngestConfig, ingest, open_source
from softrepa_pipeline.runners import RunnerConfig, make_runner
from softrepa_pipeline.shapes.dataset import WorldConfig, write_world
from softrepa_pipeline.stage import Stage, run_stage, source_digest

_WORLD_CODE = ("shapes/dataset", "shapes/captions", "shapes/claims", "shapes/scene")


def render_world(parameters: dict[str, Any], folder: str, force: bool) -> dict[str, Any]:
    """Render the embedded world: training pairs, and prompts with their truth for evaluation."""
    config = build(WorldConfig, parameters, "world")
    stage = Stage("world", Path(folder), {}, config, _WORLD_CODE)
    return run_stage(stage, lambda: write_world(config, Path(folder)), force)


def ingest_pairs(
    source: dict[str, Any],
    parameters: dict[str, Any],
    execution: dict[str, Any],
    folder: str,
    world: dict[str, Any],
    force: bool,
) -> dict[str, Any]:
    """Decode and clean every pair of the data set; bad samples go to the quarantine table."""
    assert world, "the embedded world is rendered first: it may be the data set"
    path = source["known"].get(source["dataset"], source["dataset"])
    config = build(IngestConfig, {"source": path, "output": folder, **parameters}, "ingest")
    runner = make_runner(build(RunnerConfig, execution, "runner"))
    found = open_source(path)
    inputs = {"source": found.digest}
    if config.evaluation:
        inputs["evaluation"] = source_digest(str(Path(config.evaluation) / "pairs.parquet"))
    stage = Stage("ingest", Path(folder), inputs, config, ("ingestion",))

    def compute() -> dict[str, Any]:
        if force:
            shutil.rmtree(Path(folder) / "parts", ignore_errors=True)
        return ingest(config, found, runner)

    pairs = run_stage(stage, compute, force)
    tracking.log_metrics({f"ingest/{key}": pairs[key] for key in ("num_images", "num_captions", "num_quarantined")})
    tracking.log_dataset(source["dataset"], path, pairs["digest"], pairs["num_images"])
    tracking.log_artifact(Path(folder) / "quarantine.parquet", "ingest")
    return pairs
