"""Editing of images by captions, with whatever soft tokens are injected."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from softrepa_pipeline.backbones import Backbone
from softrepa_pipeline.evaluation.editing.config import Captions, EditConfig, check_family
from softrepa_pipeline.evaluation.editing.flow import flow_edit
from softrepa_pipeline.evaluation.editing.inversion import edit_by_inversion
from softrepa_pipeline.evaluation.pixels import to_images, to_pixels

_EDITORS: dict[str, Callable[..., Tensor]] = {
    "flowedit": flow_edit,
    "ddim": edit_by_inversion,
    "pnp": edit_by_inversion,
}


@torch.no_grad()
def edit(
    backbone: Backbone, images: np.ndarray, captions: Sequence[Captions], config: EditConfig, label: str = "editing"
) -> np.ndarray:
    """Edit images (images, height, width, 3), uint8; each one's result depends on the seed and its captions alone.

    Raises:
        ValueError: the method is not for this family, or the images' sides do not fit the model.
    """
    check_family(config.method, backbone.family)
    _check_sides(backbone, images)
    method, edited = _EDITORS[config.method], []
    for start in tqdm(range(0, len(images), config.batch_size), desc=label, mininterval=2, leave=False):
        batch = slice(start, start + config.batch_size)
        source = backbone.encode_images(to_pixels(images[batch])).float()
        edited.append(to_images(backbone.decode_latents(method(backbone, source, captions[batch], config))))
    return np.concatenate(edited)


@torch.no_grad()
def reconstruct(backbone: Backbone, images: np.ndarray) -> np.ndarray:
    """What the autoencoder alone makes of the images: no edit can keep more than that."""
    return to_images(backbone.decode_latents(backbone.encode_images(to_pixels(images)).float()))


def native_side(backbone: Backbone) -> int:
    """Height and width, in pixels, of the images that the model was made for."""
    denoiser: Any = backbone.denoiser
    return denoiser.config.sample_size * backbone.pipeline.vae_scale_factor


def _check_sides(backbone: Backbone, images: np.ndarray) -> None:
    denoiser: Any = backbone.denoiser
    unit = backbone.pipeline.vae_scale_factor * denoiser.config.get("patch_size", 1)
    height, width = images.shape[1:3]
    if height % unit or width % unit:
        raise ValueError(f"images are {width} × {height}; this model needs sides that are multiples of {unit}")
