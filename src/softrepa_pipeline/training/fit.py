"""The training loop: soft tokens on a frozen base model, by any of the objectives."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from softrepa_pipeline.backbones import Backbone, inject
from softrepa_pipeline.randomness import torch_generator
from softrepa_pipeline.soft_tokens import SoftTokens, bucket_of
from softrepa_pipeline.training.calibration import EncodedCandidates, encode_candidates, temperatures
from softrepa_pipeline.training.checkpoint import Progress, load_checkpoint, save_checkpoint
from softrepa_pipeline.training.config import FitConfig
from softrepa_pipeline.training.data import Candidates, TrainingSet
from softrepa_pipeline.training.initial import initial_tokens
from softrepa_pipeline.training.methods import METHODS, Method, RowResult, Rows

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
    method = METHODS[config.objective](tokens, config).to(backbone.device)
    optimizer = torch.optim.AdamW(method.trainable, lr=config.learning_rate, weight_decay=config.weight_decay)
    num_steps = config.steps_for(len(data.latents))
    progress = load_checkpoint(folder, method, optimizer)
    if progress is None:
        progress = Progress(0, temperatures(backbone, data, config))
        logger.info("temperatures by timestep: %s", ", ".join(f"{value:.4g}" for value in progress.temperatures))
    else:
        logger.info("going on from step %d of %d (%s)", progress.step, num_steps, folder)
    log = _replay(folder / "metrics.jsonl", progress.step, observer)
    milestones = {0, num_steps // 2}
    injected = inject(backbone.denoiser, sites, method.injected)
    with injected, log.open("a") as stream, _bar(num_steps, progress) as bar:
        for step in range(progress.step, num_steps):
            if step in milestones:
                observer.on_milestone(step, method.tokens)
            record = train_step(backbone, data, method, optimizer, config, replace(progress, step=step))
            stream.write(json.dumps(record) + "\n")
            stream.flush()
            observer.on_record(record)
            bar.update()
            bar.set_postfix(loss=f"{record['loss']:.3f}")
            if (step + 1) % config.checkpoint_steps == 0 or step + 1 == num_steps:
                save_checkpoint(folder, method, optimizer, replace(progress, step=step + 1))
        observer.on_milestone(num_steps, method.tokens)
    return method.tokens


def train_step(
    backbone: Backbone,
    data: TrainingSet,
    method: Method,
    optimizer: torch.optim.Optimizer,
    config: FitConfig,
    progress: Progress,
) -> Record:
    """One optimiser step on a batch of images; whole rows at a time, so that the softmax is exact in one pass."""
    started = time.perf_counter()
    candidates = data.candidates(config, progress.step)
    draws = _draw(data, config, candidates, progress)
    # Columns do not decouple: the symmetric loss needs the whole matrix at once, for which its settings leave room.
    pairs_at_once = config.num_pairs if config.symmetric else config.max_pairs_in_memory
    rows_at_once = max(1, pairs_at_once // config.num_candidates)
    optimizer.zero_grad(set_to_none=True)
    results = []
    encoded = encode_candidates(backbone, candidates.captions)
    for images in torch.arange(config.batch_size).split(rows_at_once):
        result = method.row_result(backbone, _rows(backbone, candidates, encoded, draws, images))
        (result.loss.sum() / config.batch_size).backward()
        results.append(result)
    for group in optimizer.param_groups:
        group["lr"] = config.learning_rate_at(progress.step, config.steps_for(len(data.latents)))
    norm = torch.nn.utils.clip_grad_norm_(method.trainable, config.max_gradient_norm)
    if not torch.isfinite(norm):
        raise ValueError(
            f"the gradient at step {progress.step} is not finite; lower fit.learning_rate or raise fit.temperature"
        )
    optimizer.step()
    method.after_step(progress.step)
    record = {"step": progress.step, **_record(results), "gradient_norm": float(norm)}
    record["learning_rate"] = optimizer.param_groups[0]["lr"]
    record["pairs_per_second"] = config.num_pairs / (time.perf_counter() - started)
    return record


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
    if config.noise_offset:
        shape = (*latents.shape[:2], 1, 1)
        generator = torch_generator(config.seed, "noise offset", progress.step)
        noise += config.noise_offset * torch.randn(shape, generator=generator)
    share = torch.rand(len(latents), generator=torch_generator(config.seed, "timestep", progress.step))
    if config.shared_draws:
        noise, share = noise[:1].expand_as(noise), share[:1].expand_as(share)
    low, high = config.timestep_range
    timestep = low + share * (high - low)
    temperature = progress.temperatures[bucket_of(timestep, len(progress.temperatures))]
    return _Draws(latents, noise.to(latents), timestep, temperature)


def _rows(
    backbone: Backbone, candidates: Candidates, encoded: EncodedCandidates, draws: _Draws, images: Tensor
) -> Rows:
    parts = (draws.latents, draws.noise, draws.timestep, draws.temperature, candidates.is_candidate)
    latents, noise, timestep, temperature, is_candidate = (part[images].to(backbone.device) for part in parts)
    noised = backbone.noise(latents, noise, timestep).repeat_interleave(is_candidate.shape[1])
    return Rows(noised, encoded.of(images), temperature, is_candidate)


def _record(results: list[RowResult]) -> Record:
    errors = torch.cat([result.errors.detach() for result in results])
    record = {"loss": torch.cat([result.loss.detach() for result in results]).mean().item()}
    for name in results[0].measures:
        record[name] = torch.cat([result.measures[name] for result in results]).mean().item()
    record["error_positive"] = errors[:, 0].mean().item()
    if errors.shape[1] > 1:
        record["error_negative"] = errors[:, 1:].mean().item()
    return record


def _replay(log: Path, steps: int, observer: Observer) -> Path:
    """Cut the log back to the checkpoint and report what it holds."""
    log.parent.mkdir(parents=True, exist_ok=True)
    lines = log.read_text().splitlines()[:steps] if log.is_file() else []
    log.write_text("".join(line + "\n" for line in lines))
    for line in lines:
        observer.on_record(json.loads(line))
    return log


def _bar(num_steps: int, progress: Progress) -> tqdm:
    return tqdm(total=num_steps, initial=progress.step, desc="training soft tokens", mininterval=1)
