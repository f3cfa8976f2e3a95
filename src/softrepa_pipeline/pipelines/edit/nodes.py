"""Node of the editing stage."""

from __future__ import annotations

import logging
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

from softrepa_pipeline import tracking
from softrepa_pipeline.backbones import ModelConfig, load_backbone
from softrepa_pipeline.config import build
from softrepa_pipeline.evaluation.editing import (
    StructureDistance,
    SweepConfig,
    compare,
    configured,
    format_table,
    write_edit_report,
)
from softrepa_pipeline.mining import ClipEncoder
from softrepa_pipeline.soft_tokens import load_soft_tokens
from softrepa_pipeline.stage import Stage, source_digest

logger = logging.getLogger(__name__)

# What decides how an edited image looks.
_CODE = (
    "backbones",
    *(f"evaluation/editing/{name}" for name in ("benchmark", "edit", "features", "flow", "guidance", "inversion")),
    "noising",
    "randomness",
    "shapes",
    "soft_tokens",
)


def compare_edits(
    soft_tokens: dict[str, Any],
    model: dict[str, Any],
    clip: dict[str, Any],
    parameters: dict[str, Any],
    folders: dict[str, str],
    force: bool,
) -> dict[str, Any]:
    """Edit the embedded world's images with and without soft tokens; writes the HTML report beside edit.json."""
    dino = parameters["dino"]
    settings = configured("embedded", model["family"], False, parameters["settings"])
    sweep = {name: value for name, value in parameters.items() if name not in ("dino", "settings")}
    config = build(SweepConfig, {**sweep, "settings": asdict(settings)}, "edit")
    structure = _structure_distance(dino)
    tokens, metadata = load_soft_tokens(Path(soft_tokens["file"]), model["family"])
    model_config = build(ModelConfig, model, "model")
    inputs = {"tokens": source_digest(soft_tokens["file"]), "model": source_digest(model_config.base)}
    inputs |= {"dtype": model_config.dtype, "edits_per_kind": str(config.edits_per_kind)}
    work = Path(folders["edits"]) / Stage("edit", Path(folders["edits"]), inputs, settings, _CODE).fingerprint
    if force:
        shutil.rmtree(work, ignore_errors=True)
    score_clip = ClipEncoder(clip["model"], clip["device"]).similarity
    comparison = compare(config, load_backbone(model_config), tokens, work, score_clip, structure)
    summary = comparison.summary
    summary.update(family=metadata["family"], objective=metadata["objective"])
    report = Path(folders["edit_report"])
    title = f"Edits with {metadata['family']}: base against {metadata['objective']} tokens"
    write_edit_report(comparison, title, report)
    _track(summary, report)
    logger.info("%s, %d edits\n\n%s\n", title, summary["num_edits"], format_table(summary))
    logger.info("report: %s", report)
    return summary


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
    for point in summary["points"]:
        metrics = {
            f"edit/{arm}/{name}": point[arm][name]["mean"] for arm in ("base", "soft") for name in ("success", "kept")
        }
        metrics |= {f"edit/gain/{name}": point["delta"][name]["mean"] for name in ("success", "kept")}
        tracking.log_metrics(metrics, point["start_step"])
    tracking.log_artifact(report, "report")
