"""The evaluation stage: base against soft tokens."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from softrepa_pipeline.backbones import ModelConfig
from softrepa_pipeline.config import build
from softrepa_pipeline.evaluation import (
    Benchmark,
    EvaluationConfig,
    Model,
    Studio,
    evaluate,
    load_benchmark,
    load_measures,
)
from softrepa_pipeline.evaluation.report import Context, format_table, write_report
from softrepa_pipeline.runners import RunnerConfig, make_runner
from softrepa_pipeline.soft_tokens import load_soft_tokens
from softrepa_pipeline.stage import source_digest
from softrepa_pipeline.training.records import read

logger = logging.getLogger(__name__)

REPORT_FILE = "report.html"
TRIPLETS_FILE = "edit_triplets.json"  # of the editing stage, for the report


def evaluate_tokens(
    soft_tokens: dict[str, Any],
    world: dict[str, Any],
    model: dict[str, Any],
    parameters: dict[str, Any],
    sampling: dict[str, Any],
    folders: dict[str, str],
    runner: dict[str, Any],
    run_id: str | None = None,
) -> dict[str, Any]:
    """Compare the base with and without soft tokens; writes the HTML report into `folders.evaluation`."""
    started = time.perf_counter()
    config = evaluation_config(parameters, sampling)
    _, metadata = load_soft_tokens(Path(soft_tokens["file"]), model["family"])
    benchmark, studio = prepare(config, world, folders, runner)
    base = build(ModelConfig, model, "model")
    soft = config.soft_model(base, soft_tokens["file"])
    evaluation = evaluate(config, benchmark, Model(base), soft, studio)
    summary = evaluation.summary
    content = hashlib.sha256(Path(soft_tokens["file"]).read_bytes()).hexdigest()
    summary.update(family=metadata["family"], objective=metadata["objective"], tokens_sha256=content)
    summary["conditional_only"] = config.conditional_only
    summary["seconds"]["total"] = time.perf_counter() - started
    report = Path(folders["evaluation"]) / REPORT_FILE
    log = read(Path(soft_tokens["log"])) if "log" in soft_tokens else []  # none where they were trained elsewhere
    triplets = report.with_name(TRIPLETS_FILE)
    edits = json.loads(triplets.read_text()) if triplets.is_file() else []
    identity = _identity(base, soft_tokens, metadata, run_id)
    identity["tokens act on"] = "the conditional branch alone" if config.conditional_only else "both branches"
    write_report(evaluation, Context(identity, log, edits), report)
    table = format_table(summary)
    logger.info("base against soft tokens, %d unseen prompts\n\n%s\n", summary["num_prompts"], table)
    logger.info("report: %s", report)
    return summary


def evaluation_config(parameters: dict[str, Any], sampling: dict[str, Any]) -> EvaluationConfig:
    return build(EvaluationConfig, {"sampling": sampling["settings"], **parameters}, "evaluation")


def prepare(
    config: EvaluationConfig, world: Mapping[str, Any], folders: Mapping[str, str], runner: Mapping[str, Any]
) -> tuple[Benchmark, Studio]:
    """The prompts, and what draws and measures their images; whatever is missing is told before anything is drawn."""
    benchmark = load_benchmark(config, Path(world["folder"]), Path(folders["prompts"]))
    measures = load_measures(config.scorers, config.sets, benchmark.truths)
    where = make_runner(build(RunnerConfig, runner, "runner"))
    return benchmark, Studio(measures, config.sampling, Path(folders["images"]), where)


def _identity(
    base: ModelConfig, soft_tokens: Mapping[str, Any], metadata: Mapping[str, str], run_id: str | None
) -> dict[str, str]:
    """Which model and which tokens, by content."""
    tokens = Path(soft_tokens["file"])
    return {
        "base model": f"{base.base} (content {source_digest(base.base, base.revision)}, {base.dtype})",
        "soft tokens": f"{tokens} (content {source_digest(str(tokens))})",
        **{f"tokens: {name}": value for name, value in metadata.items() if len(value) < 80},
        "MLflow run": run_id or "not tracked",
    }
