"""Node of the mining stage."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from softrepa_pipeline import tracking
from softrepa_pipeline.stages import mine


def mine_negatives(
    pairs: dict[str, Any],
    parameters: dict[str, Any],
    clip: dict[str, Any],
    folders: dict[str, str],
    runner: dict[str, Any],
    cache: dict[str, Any],
    force: bool,
) -> dict[str, Any]:
    """Embed images and captions with CLIP and choose hard negatives for every image."""
    result = mine.mine_negatives(pairs, parameters, clip, folders, runner, cache, force)
    tracking.log_metrics({f"mine/{name}": value for name, value in _metrics(result)})
    for name in ("negatives.parquet", "misfits.parquet", "report.html"):
        tracking.log_artifact(Path(folders["negatives"]) / name, "mine")
    return result


def _metrics(result: dict[str, Any]) -> Iterator[tuple[str, float]]:
    yield "negatives_per_image", result["negatives_per_image"]["mean"]
    yield "too_few_share", result["num_too_few"] / result["num_images"]
    yield "misfits", result["num_misfits"]
    for kind, distribution in result["scores"].items():
        if distribution is not None:
            yield f"{kind}_score", distribution["mean"]
    for rule, count in result["rejected"].items():
        yield f"rejected/{rule}", count / result["num_looked_at"]
    for name, index in result["indexes"].items():
        yield f"recall/{name}", index["recall"]
