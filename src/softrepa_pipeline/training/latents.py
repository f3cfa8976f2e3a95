"""Latents of a data set's images: encoded once, in shards, and memory-mapped from then on."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from PIL import Image, ImageOps
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from softrepa_pipeline.backbones import Backbone

_SHARD_IMAGES = 4096
_MAX_BATCH = 64
_BATCH_PIXELS = 2**22  # at once: 16 images of 512 pixels

Source = TypeVar("Source")


class LatentShards:
    """Latents (images, channels, height, width) in equal shards; only those that are asked for come into memory."""

    def __init__(self, files: list[Path]) -> None:
        self._shards = [_mapped(file) for file in files]
        self._size = len(self._shards[0])
        self.shape = torch.Size((sum(map(len, self._shards)), *self._shards[0].shape[1:]))

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Tensor) -> Tensor:
        return torch.stack([self._shards[row // self._size][row % self._size] for row in rows.tolist()])


def encode_latents(
    backbone: Backbone,
    sources: Iterable[Source],
    open_image: Callable[[Source], Image.Image],
    total: int,
    resolution: int,
    folder: Path,
) -> LatentShards:
    """Encode images in order into shards in `folder`; those that are there already are kept, so a stop costs one shard.

    `sources` are `total` of them, which `open_image` turns into RGB images.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files, remaining = shard_files(folder, total), iter(sources)
    if not all(file.is_file() for file in files):
        with tqdm(total=total, desc="encoding latents", mininterval=2) as bar:
            for file in files:
                shard = list(islice(remaining, _SHARD_IMAGES))
                if not file.is_file():
                    _write(file, _encode(backbone, shard, open_image, resolution, bar))
                else:
                    bar.update(len(shard))
    return LatentShards(files)


def shard_files(folder: Path, total: int) -> list[Path]:
    """Where the latents of `total` images stand; all of these files are there, and whole, once they are encoded."""
    return [folder / f"{index:05d}.safetensors" for index in range(-(-total // _SHARD_IMAGES))]


def to_pixels(image: Image.Image, resolution: int) -> Tensor:
    """Pixels (3, resolution, resolution) in [−1, 1] of an RGB image, shorter side scaled, centre-cropped."""
    square = ImageOps.fit(image, (resolution, resolution), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.asarray(square, dtype=np.float32)).permute(2, 0, 1) / 127.5 - 1


def _encode(
    backbone: Backbone, sources: list[Source], open_image: Callable[[Source], Image.Image], resolution: int, bar: tqdm
) -> Tensor:
    batch_size = max(1, min(_MAX_BATCH, _BATCH_PIXELS // resolution**2))
    parts = []
    for start in range(0, len(sources), batch_size):
        batch = sources[start : start + batch_size]
        pixels = torch.stack([to_pixels(open_image(source), resolution) for source in batch])
        parts.append(backbone.encode_images(pixels).cpu())
        bar.update(len(batch))
    return torch.cat(parts)


def _write(file: Path, latents: Tensor) -> None:
    partial = file.with_name(file.name + ".partial")
    save_file({"latents": latents}, partial)
    partial.replace(file)


def _mapped(file: Path) -> Tensor:
    with safe_open(file, framework="pt") as opened:
        return opened.get_tensor("latents")
