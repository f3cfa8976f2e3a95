"""Node of the full evaluation: several trainings against one base, on every test prompt."""

from __future__ import annotations

import logging
import os
import platform
import time
from pathlib import Path
from typing import Any

from softrepa_pipeline import tracking
from softrepa_pipeline.backbones import ModelConfig, inject, load_backbone
from softrepa_pipeline.config import build
from softrepa_pipeline.evaluation import EvaluationConfig, format_table, measure, results_page, summarise
from softrepa_pipeline.mining import ClipEncoder
from softrepa_pipeline.pipelines.fit.nodes import fit_tokens
from softrepa_pipeline.shapes.dataset import read_prompts
from softrepa_pipeline.soft_tokens import load_soft_tokens

logger = logging.getLogger(__name__)


def measure_results(
    pairs: dict[str, Any],
    negatives: dict[str, Any],
    world: dict[str, Any],
    model: dict[str, Any],
    clip: dict[str, Any],
    fit: dict[str, Any],
    sampling: dict[str, Any],
    parameters: dict[str, Any],
    folders: dict[str, str],
    force: bool,
) -> dict[str, Any]:
    """Train with every seed, measure all on the test prompts, and write docs/results.md."""
    started = time.perf_counter()
    settings = {**sampling["settings"], "seeds_per_prompt": parameters["seeds_per_prompt"]}
    config = build(EvaluationConfig, {**parameters["evaluation"], "sampling": settings}, "results.evaluation")
    trainings = []
    for seed in parameters["training_seeds"]:
        own_folders = {**folders, "tokens": f"{folders['tokens']}/seed-{seed}"}
        trained = fit_tokens(pairs, negatives, model, {**fit, "seed": seed}, sampling, own_folders, force)
        trainings.append(load_soft_tokens(Path(trained["file"]))[0])
    backbone = load_backbone(build(ModelConfig, model, "model"))
    encoder = ClipEncoder(clip["model"], clip["device"])
    folder = Path(world["folder"])
    base = measure(config, backbone, folder, encoder.similarity, "base")
    soft = []
    for seed, tokens in zip(parameters["training_seeds"], trainings, strict=True):
        with inject(backbone.denoiser, backbone.sites(tuple(fit["layers"])), tokens):
            soft.append(measure(config, backbone, folder, encoder.similarity, f"soft, seed {seed}"))
    summary = summarise(read_prompts(folder, "test", config.prompts_per_task), base, soft)
    summary |= {"family": model["family"], "objective": "softrepa", "seconds": time.perf_counter() - started}
    logger.info("full evaluation, %d unseen prompts\n\n%s\n", summary["num_prompts"], format_table(summary))
    page = results_page(summary, parameters["training_seeds"], fit, f"{os.cpu_count()} {platform.machine()} cores")
    Path(folders["results_page"]).write_text(page)
    tracking.log_artifact(Path(folders["results_page"]), "results")
    return summary
