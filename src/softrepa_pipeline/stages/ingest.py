"""The ingest stage: the embedded world, and clean pairs from whatever data set is chosen."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from softrepa_pipeline.config import build
from softrepa_pipeline.ingestion import IngestConfig, ingest, open_source
from softrepa_pipeline.runners import RunnerConfig, make_runner
from softrepa_pipeline.shapes.dataset import WorldConfig, write_world
from softrepa_pipeline.stage import Stage, run_stage, source_digest

_WORLD_CODE = tuple(f"shapes/{name}" for name in ("dataset", "captions", "claims", "scene", "renderers", "wordings"))


def render_world(parameters: dict[str, Any], folder: str, force: bool) -> dict[str, Any]:
    """Render the embedded world: training pairs, and prompts with their truth for evaluation."""
    config = build(WorldConfig, parameters, "world")
    stage = Stage("world", Path(folder), {}, config, _WORLD_CODE)
    return run_stage(stage, lambda: write_world(config, Path(folder)), force)


def ingest_pairs(
    source: dict[str, Any], parameters: dict[str, Any], execution: dict[str, Any], folder: str, force: bool
) -> dict[str, Any]:
    """Decode and clean every pair of the data set; bad samples go to the quarantine table."""
    config = ingest_config(source, parameters, folder)
    runner = make_runner(build(RunnerConfig, execution, "runner"))
    found = open_source(config.source)
    inputs = {"source": found.digest}
    if config.evaluation:
        inputs["evaluation"] = source_digest(str(Path(config.evaluation) / "pairs.parquet"))
    stage = Stage("ingest", Path(folder), inputs, config, ("ingestion",))

    def compute() -> dict[str, Any]:
        if force:
            shutil.rmtree(Path(folder) / "parts", ignore_errors=True)
        return ingest(config, found, runner)

    return run_stage(stage, compute, force)


def ingest_config(source: dict[str, Any], parameters: dict[str, Any], folder: str) -> IngestConfig:
    return build(IngestConfig, {"source": source_path(source), "output": folder, **parameters}, "ingest")


def source_path(source: dict[str, Any]) -> str:
    """Where the data set lies, which may have been given by a known name."""
    return source["known"].get(source["dataset"], source["dataset"])
