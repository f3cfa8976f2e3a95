"""A step's data on the device, prepared while the step before it runs."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass

import torch
from torch import Tensor

from softrepa_pipeline.backbones import Backbone, Noised, Pairs, Prompt, grid
from softrepa_pipeline.soft_tokens import bucket_of
from softrepa_pipeline.training.config import FitConfig
from softrepa_pipeline.training.data import TrainingSet
from softrepa_pipeline.training.draws import Draws, draw_noise
from softrepa_pipeline.training.methods import Rows
from softrepa_pipeline.training.texts import encode


@dataclass(frozen=True)
class StepData:
    """Images with their candidates: `noised` one entry an image, `prompt` one a distinct caption.

    `text_of` (images, captions) says which caption of `prompt` each candidate is; `rows` are places in the data set.
    """

    rows: Tensor
    noised: Noised
    timestep: Tensor
    weight: Tensor
    prompt: Prompt
    text_of: Tensor
    is_candidate: Tensor

    def __len__(self) -> int:
        return len(self.rows)

    def temperature(self, temperatures: Tensor) -> Tensor:
        """τ of each image (images,), from τ by timestep (buckets,)."""
        return temperatures[bucket_of(self.timestep, len(temperatures))]

    def rows_at(self, images: Tensor, temperatures: Tensor, share: bool) -> Rows:
        """Some images' pairs, as an objective sees them; `temperatures` (buckets,) is τ by timestep."""
        device = self.noised.sample.device
        on_device = images.to(device)
        temperature = self.temperature(temperatures)[images]
        pairs: Pairs = grid(self.noised[on_device], self.prompt, self.text_of[images], share)
        parts = (temperature, self.weight[images], self.is_candidate[images])
        return Rows(pairs, *(part.to(device) for part in parts))


def load_step(
    backbone: Backbone, data: TrainingSet, config: FitConfig, density: Tensor, step: int, part: slice
) -> StepData:
    """The images of a step that fall to this process: a pure function of its arguments."""
    positions = config.positions_of(step)
    draws = draw_noise(config, positions, data.latent_shape(config, positions), density, part)
    return load(backbone, data, config, positions, draws, part)


@torch.no_grad()
def load(
    backbone: Backbone, data: TrainingSet, config: FitConfig, positions: range, draws: Draws, part: slice = slice(None)
) -> StepData:
    """The images at the `part` of these positions, noised as drawn, each distinct caption encoded once, or read."""
    candidates = data.candidates(config, positions, part)
    distinct = sorted({caption for row in candidates.captions for caption in row})
    place_of = {caption: place for place, caption in enumerate(distinct)}
    text_of = torch.tensor([[place_of[caption] for caption in row] for row in candidates.captions])
    latents = data.latents_at(config, candidates, positions[part]).to(backbone.device)
    noised = backbone.noise(latents, draws.noise.to(latents), draws.timestep.to(backbone.device))
    prompt = encode(backbone, distinct) if data.texts is None else data.texts.of(distinct, backbone.device)
    return StepData(candidates.rows, noised, draws.timestep, draws.weight, prompt, text_of, candidates.is_candidate)


@dataclass
class Loader:
    """Steps in order, each loaded while the one before it runs; `waited` is the time spent waiting, in seconds."""

    backbone: Backbone
    data: TrainingSet
    config: FitConfig
    density: Tensor
    part: slice
    waited: float = 0.0
    _ahead: Future[StepData] | None = None

    def settle(self) -> None:
        """Wait until nothing is being loaded: tokenizers cannot serve two threads."""
        if self._ahead is not None:
            wait([self._ahead])

    def steps(self, start: int, end: int) -> Iterator[tuple[int, StepData]]:
        with ThreadPoolExecutor(1, "softrepa-loader") as pool:

            def submit(step: int) -> Future[StepData]:
                return pool.submit(load_step, self.backbone, self.data, self.config, self.density, step, self.part)

            self._ahead = submit(start)
            for step in range(start, end):
                began = time.perf_counter()
                loaded = self._ahead.result()
                self.waited = time.perf_counter() - began
                if step + 1 < end:
                    self._ahead = submit(step + 1)
                yield step, loaded
