"""Node of the evaluation stage."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

from softrepa_pipeline import tracking
from softrepa_pipeline.backbones import ModelConfig, load_backbone
from softrepa_pipeline.config import build
from softrepa_pipeline.evaluation import EvaluationConfig, evaluate, format_table, write_report
from softrepa_pipeline.evaluation.scorers import load_scorers
from softrepa_pipeline.shapes.dataset import claims_of
from softrepa_pipeline.soft_tokens import load_soft_tokens

logger = logging.getLogger(__name__)


def evaluate_tokens(
    soft_tokens: dict[str, Any],
    world: dict[str, Any],
    model: dict[str, Any],
    parameters: dict[str, Any],
    sampling: dict[str, Any],
    report: str,
) -> dict[str, Any]:
    """Compare the base with and without soft tokens; writes the HTML report beside evaluation.json."""
    started = time.perf_counter()
    config = build(EvaluationConfig, {"sampling": sampling["settings"], **parameters}, "evaluation")
    tokens, metadata = load_soft_tokens(Path(soft_tokens["file"]), model["family"])
    backbone = load_backbone(build(ModelConfig, model, "model"))
    scorers = load_scorers(config.scorers, claims_of(Path(world["folder"])))
    evaluation = evaluate(config, backbone, tokens, Path(world["folder"]), scorers)
    evaluation.summary.update(family=metadata["family"], objective=metadata["objective"])
    evaluation.summary["seconds"]["total"] = time.perf_counter() - started
    write_report(evaluation, Path(report))
    _track(evaluation.summary, Path(report))
    logger.info(
        "base against soft tokens, %d unseen prompts\n\n%s\n", len(evaluation.prompts), format_table(evaluation.summary)
    )
    logger.info("report: %s", report)
    return evaluation.summary


def _track(summary: dict[str, Any], report: Path) -> None:
    metrics = {
        f"evaluation/{arm}/{task}": value for arm in ("base", "soft") for task, value in summary[arm]["tasks"].items()
    }
    metrics |= {f"evaluation/{arm}/overall": summary[arm]["overall"] for arm in ("base", "soft")}
    metrics |= {f"evaluation/gain/{bound}": value for bound, value in summary["delta"]["overall"].items()}
    measures = {name: score for name, score in summary["scores"].items() if "not_measured" not in score}
    for name, measure in {"retrieval": summary["retrieval"], **measures}.items():
        metrics |= {f"evaluation/{arm}/{name}": measure[arm] for arm in ("base", "soft")}
    tracking.log_metrics(metrics)
    tracking.log_artifact(report, "report")
