"""Latents of images: each image is encoded once for all data sets that it is in, and memory-mapped from then on."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from PIL import Image, ImageOps
from torch import Tensor

from softrepa_pipeline.backbones import ModelConfig, encode_images, load_vae
from softrepa_pipeline.runners import LocalRunner, Runner
from softrepa_pipeline.stage import source_digest
from softrepa_pipeline.tensor_store import StoredRows, TensorStore, fill
from softrepa_pipeline.training.buckets import Size

_SHARD_IMAGES = 512
_MAX_BATCH = 64
_BATCH_PIXELS = 2**22  # at once: 16 images of 512 pixels
# Of `to_pixels`: another one needs another name, or latents of the old would be taken for it.
_SQUARE, _CROP = "square1", "crop1"

Read = Callable[[list[int]], Iterable[Image.Image]]


def encode_latents(
    model: ModelConfig,
    image_ids: Sequence[str],
    read: Read,
    size: Size,
    store: TensorStore,
    runner: Runner = LocalRunner(),  # noqa: B008 - frozen
    mirrored: bool = False,
) -> StoredRows:
    """Latents (images, channels, height, width) of all images in order; those that the store lacks are encoded.

    Each image is scaled and cropped to `size` (height, width).
    `read` gives the RGB images at some places of `image_ids`, in their order; it is pickled where the runner has other
    processes. With `mirrored` the images are mirrored before they are encoded, and the store must be another one.
    """
    places = {image_id: place for place, image_id in enumerate(image_ids)}
    fill(store, places, _Encoder(model, read, size, mirrored), runner, _SHARD_IMAGES, "encoding latents")
    return store.rows(image_ids)


def latent_store(model: ModelConfig, size: Size, folder: Path, mirrored: bool = False) -> TensorStore:
    """Where latents of this autoencoder, number format and size (height, width) are kept under `folder`."""
    local = Path(model.base) / "vae"
    if model.vae is not None:
        encoder = source_digest(model.vae)
    else:
        encoder = source_digest(str(local)) if local.is_dir() else source_digest(model.base, model.revision)
    height, width = size
    shape = f"{_SQUARE}-{width}" if width == height else f"{_CROP}-{height}x{width}"
    parts = [encoder, model.variant, model.dtype, shape, "mirrored" if mirrored else None]
    return TensorStore(folder / "-".join(part for part in parts if part))


def to_pixels(image: Image.Image, size: Size) -> Tensor:
    """Pixels (3, height, width) in [−1, 1] of an RGB image, scaled until it covers the size, centre-cropped."""
    height, width = size
    cropped = ImageOps.fit(image, (width, height), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.asarray(cropped, dtype=np.float32)).permute(2, 0, 1) / 127.5 - 1


@dataclass(frozen=True)
class _Encoder:
    """Latents of the images at some places; the autoencoder is loaded when the first are asked for."""

    model: ModelConfig
    read: Read
    size: Size
    mirrored: bool

    def __call__(self, places: list[int]) -> Tensor:
        images, count = iter(self.read(places)), max(1, min(_MAX_BATCH, _BATCH_PIXELS // math.prod(self.size)))
        parts = []
        while batch := [to_pixels(image, self.size) for image in islice(images, count)]:
            pixels = torch.stack(batch)
            parts.append(encode_images(self._vae, pixels.flip(-1) if self.mirrored else pixels).cpu())
        return torch.cat(parts)

    @cached_property
    def _vae(self) -> AutoencoderKL:
        return load_vae(self.model)
