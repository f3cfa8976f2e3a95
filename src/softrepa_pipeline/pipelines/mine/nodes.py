"""Node of the mining stage."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from softrepa_pipeline import tracking
from softrepa_pipeline.caches import CacheConfig, cache_folders, limited
from softrepa_pipeline.config import build
from softrepa_pipeline.ingestion import iter_captions, read_images
from softrepa_pipeline.mining import Captioned, Embeddings, MineConfig, mine
from softrepa_pipeline.runners import RunnerConfig, make_runner
from softrepa_pipeline.stage import Stage, run_stage, source_digest


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
    config = build(MineConfig, {"clip": clip["model"], "device": clip["device"], **parameters}, "mine")
    folder, pairs_folder = Path(folders["negatives"]), Path(pairs["folder"])
    inputs = {"pairs": pairs["digest"], "clip": source_digest(config.clip)}
    stage = Stage("mine", folder, inputs, config, ("mining", "randomness"))
    where, limit = make_runner(build(RunnerConfig, runner, "runner")), build(CacheConfig, cache, "cache")
    read = partial(read_images, pairs_folder)
    embeddings = Embeddings(config.clip, Path(folders["clip"]), read, config.device, where)

    def compute() -> dict[str, Any]:
        captioned = (Captioned(*pair) for pair in iter_captions(pairs_folder))
        with limited(cache_folders(folders), limit):
            return mine(config, captioned, embeddings, folder, pairs["has_images"])

    result = run_stage(stage, compute, force)
    tracking.log_metrics({f"mine/{name}": value for name, value in _metrics(result)})
    for name in ("negatives.parquet", "misfits.parquet", "report.html"):
        tracking.log_artifact(folder / name, "mine")
    return {**result, "digest": stage.fingerprint}


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
