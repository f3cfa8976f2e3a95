"""Node of the editing stage."""

from __future__ import annotations

import logging
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

from softrepa_pipeline import tracking
from softrepa_pipeline.backbones import ModelConfig
from softrepa_pipeline.config import build
from softrepa_pipeline.evaluation.editing import (
    StructureDistance,
    SweepConfig,
    compare,
    configured,
    format_table,
    summarise,
    triplets,
    write_edit_report,
)
from softrepa_pipeline.mining import ClipEncoder
from softrepa_pipeline.soft_tokens import load_soft_tokens
from softrepa_pipeline.stage import write_json
from softrepa_pipeline.stages.evaluate import TRIPLETS_FILE

logger = logging.getLogger(__name__)

_FRONT = ("gain", "low", "high")


def compare_edits(
    soft_tokens: dict[str, Any],
    model: dict[str, Any],
    clip: dict[str, Any],
    parameters: dict[str, Any],
    folders: dict[str, str],
    force: bool,
) -> dict[str, Any]:
    """Edit the embedded world's images with and without soft tokens; writes the HTML report beside edit.json."""
    config = _sweep(parameters, model["family"])
    tokens = Path(soft_tokens["file"])
    _, metadata = load_soft_tokens(tokens, model["family"])
    structure = _structure_distance(parameters["dino"])
    work = Path(folders["edits"])
    if force:
        shutil.rmtree(work, ignore_errors=True)
    comparison = compare(config, build(ModelConfig, model, "model"), tokens, work)
    summary = summarise(comparison, ClipEncoder(clip["model"], clip["device"]).similarity, structure)
    summary.update(family=metadata["family"], objective=metadata["objective"])
    report = Path(folders["evaluation"]) / "edit.html"
    title = f"Edits with {metadata['family']}: base against {metadata['objective']} tokens"
    write_edit_report(comparison, summary, title, report)
    write_json(report.with_name(TRIPLETS_FILE), triplets(comparison, summary))  # for the report of the evaluation
    _track(summary, report)
    logger.info("%s, %d edits\n\n%s\n", title, summary["num_edits"], format_table(summary))
    logger.info("report: %s", report)
    return summary


def _sweep(parameters: dict[str, Any], family: str) -> SweepConfig:
    """The parameters' sweep: the method of the family's preset, or those that are named, side by side."""
    sweep = {name: value for name, value in parameters.items() if name not in ("dino", "methods", "settings")}
    changes = parameters["settings"]
    if "method" in changes:
        raise ValueError("edit.settings changes every method; name methods in edit.methods")
    methods = parameters["methods"] or [configured("embedded", family, False, changes).method]
    settings = [asdict(configured("embedded", family, False, {**changes, "method": method})) for method in methods]
    return build(SweepConfig, {**sweep, "settings": settings}, "edit")


def _structure_distance(dino: str | None) -> StructureDistance | None:
    """None, with a warning, where the weights are not within reach: everything else is measured all the same."""
    if dino is None:
        return None
    try:
        return StructureDistance(dino)
    except FileNotFoundError as error:
        logger.warning("structure distance is not measured: %s", error)
        return None


def _track(summary: dict[str, Any], report: Path) -> None:
    """Curves along the start step, as MLflow shows a metric's steps."""
    for method, found in summary["methods"].items():
        for point in found["points"]:
            metrics = {
                f"edit/{method}/{arm}/{name}": point[arm][name]["mean"]
                for arm in ("base", "soft")
                for name in ("success", "kept")
            }
            metrics |= {f"edit/{method}/gain/{name}": point["delta"][name]["mean"] for name in ("success", "kept")}
            tracking.log_metrics(metrics, point["start_step"])
        if found["front"]:
            tracking.log_metrics({f"edit/{method}/front/{name}": found["front"][name] for name in _FRONT})
    tracking.log_artifact(report, "report")
