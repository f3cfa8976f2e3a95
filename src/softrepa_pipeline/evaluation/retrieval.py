"""Denoising retrieval: does an image's own caption have the lowest denoising error?"""

from __future__ import annotations

import numpy as np
import torch

from softrepa_pipeline.backbones import Backbone, grid
from softrepa_pipeline.evaluation.pixels import to_pixels
from softrepa_pipeline.objectives import denoising_errors
from softrepa_pipeline.randomness import numpy_generator, torch_generator
from softrepa_pipeline.shapes.claims import is_true
from softrepa_pipeline.shapes.dataset import Prompt
from softrepa_pipeline.shapes.verifier import look

NUM_TIMESTEPS = 1000
_LEVELS = (0.35, 0.55, 0.75, 0.9)


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
def retrieval_hits(backbone: Backbone, images: np.ndarray, captions: list[list[str]], seed: int) -> np.ndarray:
    """Whether argmin_j err[i, j] = 0 for each image (images,), where captions[i][0] is its own.

    Errors are averaged over four noise levels, with one noise an image and level, the same for all its captions.
    """
    hits = []
    for row, (image, candidates) in enumerate(zip(images, captions, strict=True)):
        latent = backbone.encode_images(to_pixels(image[None])).repeat(len(_LEVELS), 1, 1, 1)
        noise = torch.randn(latent.shape, generator=torch_generator(seed, "retrieval", row)).to(latent)
        timestep = torch.tensor(_LEVELS, device=latent.device) * NUM_TIMESTEPS
        columns = torch.arange(len(candidates)).expand(len(_LEVELS), -1)
        pairs = grid(backbone.noise(latent, noise, timestep), backbone.encode_prompts(candidates), columns)
        errors = denoising_errors(pairs.predict(backbone), pairs.target).view(columns.shape)
        hits.append(int(errors.mean(dim=0).argmin()) == 0)
    return np.array(hits)
