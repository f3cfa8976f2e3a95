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
    tracking.log_metrics({f"mine/{name}": value for name, value in _metrics(result)})
    for file in ("negatives.parquet", "report.html"):
        tracking.log_artifact(Path(folder) / file, "mine")
    return {**result, "digest": stage.fingerprint}


def _captioned(pairs: dict[str, Any]) -> Iterator[Captioned]:
    stored = iter_pairs(Path(pairs["folder"]))
    return (Captioned(pair.image_id, load_rgb(pair.image), tuple(pair.captions)) for pair in stored)


def _metrics(result: dict[str, Any]) -> Iterator[tuple[str, float]]:
    yield "negatives_per_image", result["negatives_per_image"]["mean"]
    yield "too_few_share", result["num_too_few"] / result["num_images"]
    for kind, distribution in result["scores"].items():
        if distribution is not None:
            yield f"{kind}_score", distribution["mean"]
    for rule, count in result["rejected"].items():
        yield f"rejected/{rule}", count / result["num_looked_at"]
    for name, index in result["indexes"].items():
        yield f"recall/{name}", index["recall"]
