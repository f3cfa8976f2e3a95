"""Node of the mining stage."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from softrepa_pipeline import tracking
from softrepa_pipeline.config import build
from softrepa_pipeline.ingestion import iter_pairs, load_rgb
from softrepa_pipeline.mining import Captioned, MineConfig, mine
from softrepa_pipeline.stage import Stage, run_stage, source_digest


def mine_negatives(
    pairs: dict[str, Any], parameters: dict[str, Any], clip: dict[str, Any], folder: str, force: bool
) -> dict[str, Any]:
    """Embed images and captions with CLIP and choose hard negatives for every image."""
    config = build(MineConfig, {"clip": clip["model"], "device": clip["device"], **parameters}, "mine")
    inputs = {"pairs": pairs["digest"], "clip": source_digest(config.clip)}
    stage = Stage("mine", Path(folder), inputs, config, ("mining", "randomness"))
    result = run_stage(stage, lambda: mine(config, _captioned(pairs), pairs["num_images"], Path(folder)), force)
    counts = result["negatives_per_image"]
    tracking.log_metrics({"mine/negatives_per_image": counts["mean"], "mine/similarity": result["mean_similarity"]})
    tracking.log_artifact(Path(folder) / "negatives.parquet", "mine")
    return {**result, "digest": stage.fingerprint}


def _captioned(pairs: dict[str, Any]) -> Iterator[Captioned]:
    for pair in iter_pairs(Path(pairs["folder"])):
        assert pair.image is not None, "captions alone are not mined yet"
        yield Captioned(pair.image_id, load_rgb(pair.image), tuple(pair.captions))
