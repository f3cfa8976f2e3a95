"""What a training step reads: cached latents, and for each image one of its captions and its negatives."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from PIL import Image, ImageOps
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from softrepa_pipeline.backbones import Backbone
from softrepa_pipeline.randomness import numpy_generator
from softrepa_pipeline.training.config import FitConfig

_MAX_ENCODE_BATCH = 64
_ENCODE_PIXELS = 2**22  # at once: 16 images of 512 pixels


@dataclass(frozen=True)
class Candidates:
    """Captions scored for each image of a step: `captions[i][0]` is its own, the others are negatives.

    Captions that are true of the image as well stand in the batch, but `is_candidate` (images, captions) is False.
    """

    rows: Tensor
    captions: list[list[str]]
    is_candidate: Tensor


class TrainingSet:
    """Latents (images, channels, height, width) with captions and mined negatives, in the same order."""

    def __init__(self, latents: Tensor, negatives_file: Path) -> None:
        table = pq.read_table(negatives_file)
        self.latents = latents
        self.captions: list[list[str]] = table["captions"].to_pylist()
        self.edits: list[list[list[str]]] = table["edits"].to_pylist()
        self.negatives: list[list[str]] = table["negatives"].to_pylist()
        self.all_captions = sorted({caption for own in self.captions for caption in own})
        if any(len(set(own)) == len(self.all_captions) for own in self.captions):
            raise ValueError(f"{negatives_file}: one image has every caption, so that none can be its negative")
        if len(self.captions) != len(latents):
            raise ValueError(
                f"{negatives_file} lists {len(self.captions)} images, but {len(latents)} were encoded; "
                "run `kedro run --pipeline train --params force=true`"
            )

    def candidates(self, config: FitConfig, step: int) -> Candidates:
        """The images of a step and their candidate captions: a pure function of (seed, step)."""
        rows = self._rows(config, step)
        rng = numpy_generator(config.seed, "captions", step)
        if config.objective == "dsm":
            captions = [[_one_of(self.captions[row], rng)] for row in rows]
        elif config.candidates == "batch":
            captions = _own_first([_one_of(self.captions[row], rng) for row in rows])
        else:
            captions = [self._candidates_of(row, config, rng) for row in rows]
        is_candidate = [
            [index == 0 or caption not in self.captions[row] for index, caption in enumerate(scored)]
            for row, scored in zip(rows, captions, strict=True)
        ]
        return Candidates(torch.from_numpy(rows), captions, torch.tensor(is_candidate))

    def _rows(self, config: FitConfig, step: int) -> np.ndarray:
        """Position by position through a fresh permutation for each epoch."""
        size = len(self.latents)
        positions = np.arange(step * config.batch_size, (step + 1) * config.batch_size)
        orders = {
            epoch: numpy_generator(config.seed, "order", int(epoch)).permutation(size)
            for epoch in np.unique(positions // size)
        }
        return np.array([orders[position // size][position % size] for position in positions])

    def _candidates_of(self, row: int, config: FitConfig, rng: np.random.Generator) -> list[str]:
        own = self.captions[row]
        index = int(rng.integers(len(own)))
        edited = _some(self.edits[row][index], config.num_negatives * config.edited_share, rng)
        mined = _some(self.negatives[row], config.num_negatives * config.mined_share, rng)
        taken = [own[index], *edited, *mined]
        while len(taken) < 1 + config.num_negatives:
            caption = _one_of(self.all_captions, rng)
            if caption not in own:
                taken.append(caption)
        return taken


def _one_of(captions: list[str], rng: np.random.Generator) -> str:
    return captions[int(rng.integers(len(captions)))]


def _own_first(captions: list[str]) -> list[list[str]]:
    """Each image with its own caption first and the others' after it, in their order."""
    return [[own, *captions[:row], *captions[row + 1 :]] for row, own in enumerate(captions)]


def _some(captions: list[str], count: float, rng: np.random.Generator) -> list[str]:
    """As many as there are of `count`, drawn without replacement."""
    return [captions[i] for i in rng.permutation(len(captions))[: round(count)]]


def to_pixels(image: Image.Image, resolution: int) -> Tensor:
    """Pixels (3, resolution, resolution) in [−1, 1] of an RGB image, shorter side scaled, centre-cropped."""
    square = ImageOps.fit(image, (resolution, resolution), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.asarray(square, dtype=np.float32)).permute(2, 0, 1) / 127.5 - 1


def encode_latents(
    backbone: Backbone, images: Iterable[Image.Image], total: int, resolution: int, path: Path
) -> Tensor:
    """Encode images in order into one safetensors file at `path`, or read it where it is complete."""
    if not path.is_file():
        parts, batch = [], []
        batch_size = max(1, min(_MAX_ENCODE_BATCH, _ENCODE_PIXELS // resolution**2))
        for image in tqdm(images, total=total, desc="encoding latents", mininterval=2):
            batch.append(to_pixels(image, resolution))
            if len(batch) == batch_size:
                parts.append(backbone.encode_images(torch.stack(batch)).cpu())
                batch = []
        if batch:
            parts.append(backbone.encode_images(torch.stack(batch)).cpu())
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(path.name + ".partial")
        save_file({"latents": torch.cat(parts)}, partial)
        partial.replace(path)
    with safe_open(path, framework="pt") as file:
        return file.get_tensor("latents")
