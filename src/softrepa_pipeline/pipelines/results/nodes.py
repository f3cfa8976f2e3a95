"""Node of the full evaluation: every objective, trained several times, against one base on every test prompt."""

from __future__ import annotations

import json
import logging
import os
import platform
from pathlib import Path
from typing import Any

from softrepa_pipeline import tracking
from softrepa_pipeline.backbones import ModelConfig, load_backbone
from softrepa_pipeline.config import build
from softrepa_pipeline.evaluation import EvaluationConfig, format_table, measure, results_page, summarise
from softrepa_pipeline.evaluation.scorers import load_scorers
from softrepa_pipeline.inference import add_tokens
from softrepa_pipeline.pipelines.fit.nodes import fit_tokens
from softrepa_pipeline.shapes.dataset import claims_of, read_prompts
from softrepa_pipeline.soft_tokens import load_soft_tokens
from softrepa_pipeline.stage import write_json

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
    backbone = load_backbone(build(ModelConfig, model, "model"))
    scorers = load_scorers(config.scorers, claims_of(Path(world["folder"])))
    prompts = read_prompts(Path(world["folder"]), "test", config.prompts_per_task)
    base = measure(config, backbone, Path(world["folder"]), scorers, "base")
    summaries = {}
    for objective in parameters["objectives"]:
        trainings, seconds = {}, []
        for seed in parameters["training_seeds"]:
            own_folders = {**folders, "tokens": f"{folders['tokens']}/results/{objective}-{seed}"}
            own_fit = {**fit, "objective": objective, "seed": seed}
            trained = fit_tokens(
                pairs, negatives, model, own_fit, execution, sampling, own_folders, runner, cache, force
            )
            trainings[seed] = load_soft_tokens(Path(trained["file"]))[0]
            seconds.append(trained["seconds"])
        arms = []
        for seed, tokens in trainings.items():
            with add_tokens(backbone, tokens):
                arms.append(measure(config, backbone, Path(world["folder"]), scorers, f"{objective}, seed {seed}"))
        summaries[objective] = {**summarise(prompts, base, arms), "seconds": {"training": sum(seconds) / len(seconds)}}
        logger.info("%s, %s\n\n%s\n", model["family"], objective, format_table(summaries[objective]))
    results = {
        "family": model["family"],
        "seeds": parameters["training_seeds"],
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
