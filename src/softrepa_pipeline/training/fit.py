"""The training loop: soft tokens on a frozen base model, by SoftREPA's contrastive objective."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from softrepa_pipeline.backbones import Backbone, inject
from softrepa_pipeline.objectives import LOGITS, RowLoss, denoising_errors, softrepa_loss
from softrepa_pipeline.randomness import torch_generator
from softrepa_pipeline.soft_tokens import SoftTokens, bucket_of
from softrepa_pipeline.training.calibration import (
    NUM_CALIBRATION_BUCKETS,
    encode_candidates,
    measure_gaps,
)
from softrepa_pipeline.training.checkpoint import Progress, load_checkpoint, save_checkpoint
from softrepa_pipeline.training.config import FitConfig
from softrepa_pipeline.training.data import Candidates, TrainingSet
from softrepa_pipeline.training.initial import initial_tokens

logger = logging.getLogger(__name__)

Record = dict[str, float]


@dataclass(frozen=True)
class Observer:
    """Where a run reports to: every step's record, and moments at which images are worth drawing (with its step)."""

    on_record: Callable[[Record], None] = lambda record: None
    on_milestone: Callable[[int, SoftTokens], None] = lambda step, tokens: None


def fit(backbone: Backbone, data: TrainingSet, config: FitConfig, folder: Path, observer: Observer) -> SoftTokens:
    """Train soft tokens; goes on from the newest checkpoint in `folder`, exactly as if it had never stopped.

    Every record is appended to `folder/metrics.jsonl` and given to the observer, on a resumed run from step 0 on.

    Raises:
        ValueError: the newest checkpoint is damaged, or the loss is not finite.
    """
    sites = backbone.sites(config.layers)
    tokens = initial_tokens(backbone, sites, config, data.latents.shape[1:])
    optimizer = torch.optim.AdamW(tokens.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)
    progress = load_checkpoint(folder, tokens, optimizer)
    tokens.to(backbone.device)
    if progress is None:
        progress = Progress(0, _temperatures(backbone, data, config))
        logger.info("temperatures by timestep: %s", ", ".join(f"{value:.4g}" for value in progress.temperatures))
    else:
        logger.info("going on from step %d of %d (%s)", progress.step, config.num_steps, folder)
    log = _replay(folder / "metrics.jsonl", progress.step, observer)
    milestones = {0, config.num_steps // 2}
    with inject(backbone.denoiser, sites, tokens), log.open("a") as stream, _bar(config, progress) as bar:
        for step in range(progress.step, config.num_steps):
            if step in milestones:
                observer.on_milestone(step, tokens)
            record = train_step(backbone, data, tokens, optimizer, config, replace(progress, step=step))
            stream.write(json.dumps(record) + "\n")
            stream.flush()
            observer.on_record(record)
            bar.update()
            bar.set_postfix(loss=f"{record['loss']:.3f}", accuracy=f"{record['infonce_accuracy']:.2f}")
            if (step + 1) % config.checkpoint_steps == 0 or step + 1 == config.num_steps:
                save_checkpoint(folder, tokens, optimizer, replace(progress, step=step + 1))
        observer.on_milestone(config.num_steps, tokens)
    return tokens


def train_step(
    backbone: Backbone,
    data: TrainingSet,
    tokens: SoftTokens,
    optimizer: torch.optim.Optimizer,
    config: FitConfig,
    progress: Progress,
) -> Record:
    """One optimiser step on a batch of images; whole rows at a time, so that the softmax is exact in one pass."""
    started = time.perf_counter()
    candidates = data.candidates(config, progress.step)
    draws = _draw(data, config, candidates, progress)
    rows_at_once = max(1, config.max_pairs_in_memory // (1 + config.num_negatives))
    optimizer.zero_grad(set_to_none=True)
    parts = []
    for rows in torch.arange(len(candidates.rows)).split(rows_at_once):
        errors, loss = _row_loss(backbone, config, candidates, draws, rows)
        (loss.loss.sum() / config.batch_size).backward()
        parts.append((errors.detach(), loss))
    for group in optimizer.param_groups:
        group["lr"] = config.learning_rate_at(progress.step)
    norm = torch.nn.utils.clip_grad_norm_(tokens.parameters(), config.max_gradient_norm)
    if not torch.isfinite(norm):
        raise ValueError(
            f"the gradient at step {progress.step} is not finite; lower fit.learning_rate or raise fit.temperature"
        )
    optimizer.step()
    record = _record(parts, float(norm), config)
    record["learning_rate"] = optimizer.param_groups[0]["lr"]
    record["pairs_per_second"] = len(candidates.rows) * (1 + config.num_negatives) / (time.perf_counter() - started)
    return {"step": progress.step, **record}


@dataclass(frozen=True)
class _Draws:
    """A step's random draws for all its images: the same whatever the micro-batch."""

    latents: Tensor
    noise: Tensor
    timestep: Tensor
    temperature: Tensor


def _draw(data: TrainingSet, config: FitConfig, candidates: Candidates, progress: Progress) -> _Draws:
    latents = data.latents[candidates.rows]
    noise = torch.randn(latents.shape, generator=torch_generator(config.seed, "noise", progress.step))
    share = torch.rand(len(latents), generator=torch_generator(config.seed, "timestep", progress.step))
    low, high = config.timestep_range
    timestep = low + share * (high - low)
    bucket = bucket_of(timestep, NUM_CALIBRATION_BUCKETS)
    return _Draws(latents, noise.to(latents), timestep, progress.temperatures[bucket])


def _row_loss(
    backbone: Backbone, config: FitConfig, candidates: Candidates, draws: _Draws, rows: Tensor
) -> tuple[Tensor, RowLoss]:
    device, width = backbone.device, 1 + config.num_negatives
    prompt = encode_candidates(backbone, [candidates.captions[row] for row in rows.tolist()])
    latents, noise, timestep = (part[rows].to(device) for part in (draws.latents, draws.noise, draws.timestep))
    noised = backbone.noise(latents, noise, timestep).repeat_interleave(width)
    errors = denoising_errors(backbone.predict(noised, prompt), noised.target).view(len(rows), width)
    temperature = draws.temperature[rows].to(device)
    logits = LOGITS[config.logits](errors, config.scale, temperature[:, None])
    # Departure: with a calibrated τ(t) the contrastive gradient grows as 1 / τ(t), so λ is counted in the same unit.
    weight = config.denoising_weight / temperature if config.logits == "calibrated" else config.denoising_weight
    return errors, softrepa_loss(errors, logits, weight)


def _temperatures(backbone: Backbone, data: TrainingSet, config: FitConfig) -> Tensor:
    if config.logits == "constant":
        return torch.full((NUM_CALIBRATION_BUCKETS,), config.temperature)
    return config.temperature * measure_gaps(backbone, data, config)


def _record(parts: list[tuple[Tensor, RowLoss]], norm: float, config: FitConfig) -> Record:
    errors = torch.cat([part for part, _ in parts])
    losses = torch.cat([row.loss.detach() for _, row in parts])
    contrastive = torch.cat([row.contrastive for _, row in parts]).mean().item()
    return {
        "loss": losses.mean().item(),
        "contrastive_loss": contrastive,
        "infonce_accuracy": torch.cat([row.is_retrieved for _, row in parts]).mean().item(),
        "mutual_information_bound": math.log(1 + config.num_negatives) - contrastive,
        "error_positive": errors[:, 0].mean().item(),
        "error_negative": errors[:, 1:].mean().item(),
        "gradient_norm": norm,
    }


def _replay(log: Path, steps: int, observer: Observer) -> Path:
    """Cut the log back to the checkpoint and report what it holds."""
    log.parent.mkdir(parents=True, exist_ok=True)
    lines = log.read_text().splitlines()[:steps] if log.is_file() else []
    log.write_text("".join(line + "\n" for line in lines))
    for line in lines:
        observer.on_record(json.loads(line))
    return log


def _bar(config: FitConfig, progress: Progress) -> tqdm:
    return tqdm(total=config.num_steps, initial=progress.step, desc="training soft tokens", mininterval=1)
