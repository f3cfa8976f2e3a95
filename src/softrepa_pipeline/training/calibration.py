"""The base model's own error gaps between captions, by timestep: what a calibrated temperature follows."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from softrepa_pipeline.backbones import Backbone, Prompt
from softrepa_pipeline.objectives import denoising_errors
from softrepa_pipeline.randomness import torch_generator
from softrepa_pipeline.soft_tokens import bucket_of
from softrepa_pipeline.training.config import FitConfig
from softrepa_pipeline.training.data import TrainingSet

_NUM_TIMESTEPS = 1000
_NUM_BUCKETS = 10
_BATCHES = 2


def temperatures(backbone: Backbone, data: TrainingSet, config: FitConfig) -> Tensor:
    """τ (buckets,) for equal buckets of timesteps: as configured, times the base's own gaps where calibrated."""
    configured = torch.tensor(config.temperatures)
    if not config.calibrated or config.objective != "softrepa":
        return configured
    steps = torch.arange(_NUM_BUCKETS) * _NUM_TIMESTEPS / _NUM_BUCKETS
    return configured[bucket_of(steps, len(configured))] * measure_gaps(backbone, data, config)


@torch.no_grad()
def measure_gaps(backbone: Backbone, data: TrainingSet, config: FitConfig) -> Tensor:
    """Mean over images of the standard deviation over captions of err[i, :], (10,), one value a timestep decile."""
    gaps = []
    for bucket in range(_NUM_BUCKETS):
        generator = torch_generator(config.seed, "calibration", bucket)
        rows = [_row_deviation(backbone, data, config, bucket, batch, generator) for batch in range(_BATCHES)]
        gaps.append(torch.cat(rows).mean())
    return torch.stack(gaps)


def _row_deviation(
    backbone: Backbone, data: TrainingSet, config: FitConfig, bucket: int, batch: int, generator: torch.Generator
) -> Tensor:
    candidates = data.candidates(config, batch)
    latents = data.latents[candidates.rows].to(backbone.device)
    share = torch.rand(len(latents), generator=generator)
    timestep = ((bucket + share) * _NUM_TIMESTEPS / _NUM_BUCKETS).to(latents.device)
    noise = torch.randn(latents.shape, generator=generator).to(latents)
    noised = backbone.noise(latents, noise, timestep).repeat_interleave(config.num_candidates)
    prompt = encode_candidates(backbone, candidates.captions).of(torch.arange(len(latents)))
    errors = denoising_errors(backbone.predict(noised, prompt), noised.target)
    return errors.view(len(latents), -1).std(dim=1).cpu()


@dataclass(frozen=True)
class EncodedCandidates:
    """A step's captions, each encoded once; `rows` (images, captions) says which is whose."""

    prompt: Prompt
    rows: Tensor

    def of(self, images: Tensor) -> Prompt:
        """The candidates of some images, one entry a pair, image by image."""
        return self.prompt[self.rows[images].flatten().to(self.prompt.states.device)]


def encode_candidates(backbone: Backbone, captions: list[list[str]]) -> EncodedCandidates:
    """Encode each distinct caption once."""
    distinct = sorted({caption for row in captions for caption in row})
    row_of = {caption: row for row, caption in enumerate(distinct)}
    rows = torch.tensor([[row_of[caption] for caption in row] for row in captions])
    return EncodedCandidates(backbone.encode_prompts(distinct), rows)
