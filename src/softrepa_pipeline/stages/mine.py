"""The mining stage: hard negatives for every image."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

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
    config = mine_config(parameters, clip)
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
    return {**result, "digest": stage.fingerprint}


def mine_config(parameters: dict[str, Any], clip: dict[str, Any]) -> MineConfig:
    return build(MineConfig, {"clip": clip["model"], "device": clip["device"], **parameters}, "mine")
