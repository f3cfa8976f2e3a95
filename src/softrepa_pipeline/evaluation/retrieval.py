"""Denoising retrieval: does an image's own caption have the lowest denoising error?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from softrepa_pipeline.backbones import Backbone, Noised, grid
from softrepa_pipeline.backbones import Prompt as EncodedPrompt
from softrepa_pipeline.evaluation.pixels import to_pixels
from softrepa_pipeline.objectives import denoising_errors
from softrepa_pipeline.randomness import numpy_generator, torch_generator
from softrepa_pipeline.shapes.claims import is_true
from softrepa_pipeline.shapes.dataset import Prompt
from softrepa_pipeline.shapes.verifier import look

if TYPE_CHECKING:
    from jaxtyping import Bool, Float

NUM_TIMESTEPS = 1000
_LEVELS = (0.35, 0.55, 0.75, 0.9)
_PAIRS_AT_ONCE = 32


@dataclass(frozen=True)
class Candidates:
    """An image, noised to each level, and its candidate captions, its own first."""

    noised: Noised
    prompt: EncodedPrompt


def draw_distractors(images: np.ndarray, prompts: list[Prompt], count: int, seed: int) -> list[list[str]]:
    """For each image (height, width, 3) `count` captions of other prompts that its content makes false."""
    distractors = []
    for row, image in enumerate(images):
        sight = look(image)
        rng = numpy_generator(seed, "distractors", row)
        order = [prompts[i] for i in rng.permutation(len(prompts)) if i != row]
        false = [prompt.text for prompt in order if not is_true(prompt.claim, sight.things, sight.background)]
        distractors.append(false[:count])
    return distractors


@torch.no_grad()
def encode_candidates(
    backbone: Backbone, images: np.ndarray, captions: list[list[str]], levels: Sequence[float], seed: int
) -> list[Candidates]:
    """Encode images (images, height, width, 3), uint8, and each one's captions, of which `captions[i][0]` is its own.

    `levels` are shares of the schedule, in (0, 1). There is one noise an image and level, the same for all captions.
    """
    encoded = []
    for row, (image, candidates) in enumerate(zip(images, captions, strict=True)):
        latent = backbone.encode_images(to_pixels(image[None])).repeat(len(levels), 1, 1, 1)
        noise = torch.randn(latent.shape, generator=torch_generator(seed, "retrieval", row)).to(latent)
        timestep = torch.tensor(levels, device=latent.device) * NUM_TIMESTEPS
        encoded.append(Candidates(backbone.noise(latent, noise, timestep), backbone.encode_prompts(candidates)))
    return encoded


@torch.no_grad()
def caption_errors(backbone: Backbone, candidates: list[Candidates]) -> Float[Tensor, "images captions levels"]:
    """err[i, j] at each level, with the tokens that are injected, on the CPU; infinite beyond an image's captions."""
    rows = [_row_errors(backbone, image) for image in candidates]
    return pad_sequence(rows, batch_first=True, padding_value=torch.inf)


def _row_errors(backbone: Backbone, image: Candidates) -> Float[Tensor, "captions levels"]:
    columns = torch.arange(len(image.prompt.states)).expand(len(image.noised.sample), -1)
    pairs = grid(image.noised, image.prompt, columns)
    parts = (pairs[start : start + _PAIRS_AT_ONCE] for start in range(0, len(pairs), _PAIRS_AT_ONCE))
    errors = torch.cat([denoising_errors(part.predict(backbone), part.target) for part in parts])
    return errors.view(columns.shape).T.cpu()


def is_own_lowest(errors: Float[Tensor, "images captions *levels"]) -> Bool[Tensor, "images *levels"]:
    """Whether err[i, 0] is lower than every other of the image; a tie is a miss."""
    return errors[:, 0] < errors[:, 1:].amin(dim=1)


def retrieval_hits(backbone: Backbone, images: np.ndarray, captions: list[list[str]], seed: int) -> np.ndarray:
    """Whether an image's own caption, `captions[i][0]`, has its lowest error (images,), the mean of four levels."""
    errors = caption_errors(backbone, encode_candidates(backbone, images, captions, _LEVELS, seed))
    return is_own_lowest(errors.mean(dim=2)).numpy()
