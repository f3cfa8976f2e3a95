"""Node of the training stage: soft tokens on a frozen base, tracked while they train."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from softrepa_pipeline import tracking
from softrepa_pipeline.backbones import Backbone, ModelConfig, load_backbone
from softrepa_pipeline.config import build
from softrepa_pipeline.inference import SamplingConfig, draw
from softrepa_pipeline.ingestion import iter_pairs, load_rgb
from softrepa_pipeline.soft_tokens import SoftTokens, save_soft_tokens
from softrepa_pipeline.stage import Stage, run_stage, source_digest, write_json
from softrepa_pipeline.training import FitConfig, Observer, Record, TrainingSet, encode_latents, fit, fit_config

_CODE = ("training", "backbones", "noising", "objectives", "soft_tokens", "randomness")
_MODEL_OPTIONS = ("dtype", "variant", "vae", "t5", "max_sequence_length")
_METRIC_STEPS = 5
_NUM_SAMPLES = 8
_GRID_COLUMNS = 4


def fit_tokens(
    pairs: dict[str, Any],
    negatives: dict[str, Any],
    model: dict[str, Any],
    parameters: dict[str, Any],
    sampling: dict[str, Any],
    folders: dict[str, str],
    force: bool,
) -> dict[str, Any]:
    """Train soft tokens on the mined candidates; a stopped run goes on from its last checkpoint."""
    model_config = build(ModelConfig, model, "model")
    choice = {name: parameters[name] for name in ("preset", "objective")}
    changes = {name: value for name, value in parameters.items() if name not in choice}
    config = fit_config(family=model_config.family, changes=changes, **choice)
    sampling_config = build(SamplingConfig, sampling["settings"], "sampling.settings")
    base = source_digest(model_config.base, model_config.revision)
    inputs = {"pairs": pairs["digest"], "negatives": negatives["digest"], "model": base}
    inputs |= {
        name: str(getattr(model_config, name)) for name in ("dtype", "variant", "vae", "t5", "max_sequence_length")
    }
    stage = Stage("fit", Path(folders["tokens"]), inputs, config, _CODE)

    def compute() -> dict[str, Any]:
        backbone = load_backbone(model_config)
        encoder = source_digest(model_config.vae) if model_config.vae else base
        name = f"{pairs['digest'][:16]}-{encoder}-{model_config.variant}-{model_config.dtype}-{config.resolution}"
        latents_file = Path(folders["latents"]) / f"{name}.safetensors"
        images = (load_rgb(pair.image) for pair in iter_pairs(Path(pairs["folder"])))
        latents = encode_latents(backbone, images, pairs["num_images"], config.resolution, latents_file)
        data = TrainingSet(latents, Path(negatives["folder"]) / "negatives.parquet")
        work = stage.folder / "runs" / stage.fingerprint
        if force:
            _forget(work)
        with tracking.nested_run("fit") as run:
            run.log_params({f"fit.{key}": value for key, value in asdict(config).items()})
            _link_to_interrupted(run, work)
            started = time.perf_counter()
            observer = _Tracked(run, backbone, data, sampling_config, sampling["guidance"], work).observer
            tokens = fit(backbone, data, config, work, observer)
            result = _save(tokens, stage, base, config, model_config, run.run_id)
            result["seconds"] = time.perf_counter() - started
            run.log_artifact(Path(result["file"]), "tokens")
        return result

    return run_stage(stage, compute, force)


def _save(
    tokens: SoftTokens, stage: Stage, base: str, config: FitConfig, model: ModelConfig, run_id: str | None
) -> dict[str, Any]:
    file = stage.folder / "soft_tokens.safetensors"
    metadata = {
        "family": model.family,
        "objective": config.objective,
        "base_model": model.base if not Path(model.base).is_dir() else Path(model.base).name,
        "base_digest": base,
        "run_id": run_id or "",
        "licence": model.licence,
    }
    save_soft_tokens(tokens, file, metadata)
    return {"file": str(file), "num_parameters": tokens.num_parameters, **metadata, "digest": stage.fingerprint}


def _link_to_interrupted(run: tracking.NestedRun, work: Path) -> None:
    """Tag a resumed run with the one it goes on from, then leave its own id for the next."""
    note = work / "run.json"
    if note.is_file() and any(work.glob("step-*.safetensors")):
        run.set_tag("softrepa.resumed_from", json.loads(note.read_text())["run_id"])
    write_json(note, {"run_id": run.run_id})


def _forget(work: Path) -> None:
    for file in work.glob("*.*"):
        file.unlink()


class _Tracked:
    """Sends training records and sample grids to the nested MLflow run."""

    def __init__(
        self,
        run: tracking.NestedRun,
        backbone: Backbone,
        data: TrainingSet,
        sampling: SamplingConfig,
        guidance: float,
        work: Path,
    ) -> None:
        self.run, self.backbone, self.sampling, self.guidance, self.work = run, backbone, sampling, guidance, work
        stride = max(1, len(data.all_captions) // _NUM_SAMPLES)
        self.prompts = data.all_captions[::stride][:_NUM_SAMPLES]
        self.observer = Observer(self.record, self.milestone)

    def record(self, record: Record) -> None:
        step = int(record["step"])
        if step % _METRIC_STEPS == 0:
            self.run.log_metrics({name: value for name, value in record.items() if name != "step"}, step)

    def milestone(self, step: int, tokens: SoftTokens) -> None:
        images = draw(self.backbone, self.prompts, self.sampling, self.guidance, f"samples at step {step}")[:, 0]
        self.run.log_image(_grid(images), "samples", step)


def _grid(images: np.ndarray) -> Image.Image:
    """Images (count, height, width, 3) side by side in rows of four, small ones enlarged."""
    height, width = images.shape[1:3]
    grid = Image.new("RGB", (min(_GRID_COLUMNS, len(images)) * width, -(-len(images) // _GRID_COLUMNS) * height))
    for index, image in enumerate(images):
        row, column = divmod(index, _GRID_COLUMNS)
        grid.paste(Image.fromarray(image), (column * width, row * height))
    scale = max(1, 128 // height)
    return grid.resize((grid.width * scale, grid.height * scale), Image.Resampling.NEAREST)
