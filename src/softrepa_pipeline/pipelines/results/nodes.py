"""Node of the full evaluation: every objective, trained several times, against one base on every test prompt."""

from __future__ import annotations

import json
import logging
import os
import platform
from pathlib import Path
from typing import Any

from softrepa_pipeline import tracking
from softrepa_pipeline.backbones import ModelConfig
from softrepa_pipeline.config import build
from softrepa_pipeline.evaluation import EvaluationConfig, Model, measure, summarise
from softrepa_pipeline.evaluation.report import format_table, results_page
from softrepa_pipeline.pipelines.fit.nodes import fit_tokens
from softrepa_pipeline.stage import write_json
from softrepa_pipeline.stages.evaluate import prepare

logger = logging.getLogger(__name__)


def measure_results(
    pairs: dict[str, Any],
    negatives: dict[str, Any],
    world: dict[str, Any],
    model: dict[str, Any],
    fit: dict[str, Any],
    execution: dict[str, Any],
    sampling: dict[str, Any],
    parameters: dict[str, Any],
    folders: dict[str, str],
    runner: dict[str, Any],
    cache: dict[str, Any],
    force: bool,
) -> dict[str, Any]:
    """Train a family with every objective and seed, measure all on the test prompts, and write docs/results.md."""
    settings = {**sampling["settings"], "seeds_per_prompt": parameters["seeds_per_prompt"]}
    config = build(EvaluationConfig, {**parameters["evaluation"], "sampling": settings}, "results.evaluation")
    benchmark, studio = prepare(config, world, folders, runner)
    base_model = build(ModelConfig, model, "model")
    base = measure(benchmark, Model(base_model), config.guidance_scales, studio, "base")
    summaries = {}
    for objective in parameters["objectives"]:
        arms, seconds = [], []
        for seed in parameters["training_seeds"]:
            own_folders = {**folders, "tokens": f"{folders['tokens']}/results/{objective}-{seed}"}
            own_fit = {**fit, "objective": objective, "seed": seed}
            trained = fit_tokens(
                pairs, negatives, model, own_fit, execution, sampling, own_folders, runner, cache, force
            )
            seconds.append(trained["seconds"])
            soft = config.soft_model(base_model, trained["file"])
            arms.append(measure(benchmark, soft, config.guidance_scales, studio, f"{objective}, seed {seed}"))
        summary = {**summarise(benchmark, base, arms), "seconds": {"training": sum(seconds) / len(seconds)}}
        summaries[objective] = summary
        logger.info("%s, %s\n\n%s\n", model["family"], objective, format_table(summary))
    results = {
        "family": model["family"],
        "seeds": parameters["training_seeds"],
        "conditional_only": config.conditional_only,
        "machine": f"{os.cpu_count()} {platform.machine()} cores",
        "objectives": summaries,
    }
    _write(results, folders)
    return results


def _write(results: dict[str, Any], folders: dict[str, str]) -> None:
    """The page holds every family that has been measured."""
    stored = Path(folders["results"])
    write_json(stored / f"{results['family']}.json", results)
    families = [json.loads(file.read_text()) for file in sorted(stored.glob("*.json"))]
    page = Path(folders["results_page"])
    page.write_text(results_page(families))
    tracking.log_artifact(page, "results")
