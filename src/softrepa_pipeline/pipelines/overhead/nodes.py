"""Node of the overhead stage."""

from __future__ import annotations

import logging
import platform
from pathlib import Path
from typing import Any

import torch

from softrepa_pipeline import tracking
from softrepa_pipeline.backbones import ModelConfig
from softrepa_pipeline.config import build
from softrepa_pipeline.evaluation.overhead import OverheadConfig, format_overhead, measure_drawing, training_cost
from softrepa_pipeline.training.job import read_job
from softrepa_pipeline.training.records import read

logger = logging.getLogger(__name__)


def measure_overhead(
    soft_tokens: dict[str, Any], model: dict[str, Any], parameters: dict[str, Any], sampling: dict[str, Any]
) -> dict[str, Any]:
    """What these tokens took to train, and what drawing with them costs against the base alone."""
    settings = {"sampling": sampling["settings"], "guidance": sampling["guidance"], **parameters}
    config, base = build(OverheadConfig, settings, "overhead"), build(ModelConfig, model, "model")
    summary = {
        "family": base.family,
        "objective": soft_tokens["objective"],
        "device": _device(base.device),
        "num_inference_steps": config.sampling.num_inference_steps,
        "guidance": config.guidance,
        "rounds": config.rounds,
        "training": training_of(soft_tokens),
        "drawing": measure_drawing(base, Path(soft_tokens["file"]), config),
    }
    _track(summary)
    title = f"{summary['family']}, {summary['objective']} tokens, {summary['device']}, {config.rounds} rounds in turns"
    logger.info("%s\n\n%s\n", title, format_overhead(summary))
    return summary


def training_of(soft_tokens: dict[str, Any]) -> dict[str, Any]:
    """The cost of the training that wrote these tokens, or why it is not known."""
    if "log" not in soft_tokens:
        return {"not_measured": "these tokens name no log; --params force=true trains them again"}
    log = Path(soft_tokens["log"])
    records = read(log)
    if not records:
        return {"not_measured": f"there is no step in {log}"}
    job = read_job(log.with_name("job.json"))
    num_gpus = job.execution.num_processes if job.model.device.startswith("cuda") else 0
    seconds, cpu_seconds = soft_tokens["seconds"], soft_tokens.get("cpu_seconds")
    return training_cost(records, job.fit.num_pairs, num_gpus, seconds, cpu_seconds)


def _device(name: str) -> str:
    if name.startswith("cuda"):
        return torch.cuda.get_device_name(name)
    return f"{platform.machine()} CPU, {torch.get_num_threads()} threads"


def _track(summary: dict[str, Any]) -> None:
    training = {name: value for name, value in summary["training"].items() if isinstance(value, (int, float))}
    metrics = {f"overhead/training/{name}": value for name, value in training.items()}
    for row in summary["drawing"]:
        key = f"overhead/batch {row['batch_size']}/strength {row['strength']:g}"
        metrics |= {f"{key}/{name}": row[name] for name in ("seconds_per_image", "images_per_second")}
        metrics[f"{key}/ratio"] = row["ratio"]["median"]
        if row["peak_mib"] is not None:
            metrics[f"{key}/peak_mib"] = row["peak_mib"]
    tracking.log_metrics(metrics)
