"""Nodes of the ingest stage: the embedded world, and clean pairs from whatever data set is chosen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from softrepa_pipeline import tracking
from softrepa_pipeline.stages import ingest
from softrepa_pipeline.stages.ingest import render_world

__all__ = ["ingest_pairs", "render_world"]


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
    pairs = ingest.ingest_pairs(source, parameters, execution, folder, force)
    tracking.log_metrics({f"ingest/{key}": pairs[key] for key in ("num_images", "num_captions", "num_quarantined")})
    tracking.log_dataset(source["dataset"], ingest.source_path(source), pairs["digest"], pairs["num_images"])
    tracking.log_artifact(Path(folder) / "quarantine.parquet", "ingest")
    return pairs
