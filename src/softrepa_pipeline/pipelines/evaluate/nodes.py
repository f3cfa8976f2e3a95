"""Node of the evaluation stage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from softrepa_pipeline import tracking
from softrepa_pipeline.stages import evaluate


def evaluate_tokens(
    soft_tokens: dict[str, Any],
    world: dict[str, Any],
    model: dict[str, Any],
    parameters: dict[str, Any],
    sampling: dict[str, Any],
    folders: dict[str, str],
    runner: dict[str, Any],
) -> dict[str, Any]:
    """Compare the base with and without soft tokens; writes the HTML report beside evaluation.json."""
    summary = evaluate.evaluate_tokens(
        soft_tokens, world, model, parameters, sampling, folders, runner, tracking.active_run_id()
    )
    _track(summary, Path(folders["evaluation"]) / evaluate.REPORT_FILE)
    return summary


def _track(summary: dict[str, Any], report: Path) -> None:
    metrics = {
        f"evaluation/{arm}/{task}": value for arm in ("base", "soft") for task, value in summary[arm]["tasks"].items()
    }
    metrics |= {f"evaluation/{arm}/overall": summary[arm]["overall"] for arm in ("base", "soft")}
    metrics |= {f"evaluation/gain/{bound}": value for bound, value in summary["delta"]["overall"].items()}
    for name, measure in {**summary["measures"], **summary["sets"]}.items():
        if "not_measured" not in measure:
            metrics |= {f"evaluation/{arm}/{name}": measure[arm] for arm in ("base", "soft")}
    tracking.log_metrics(metrics)
    tracking.log_artifact(report, "report")
