"""Aspect-ratio buckets: images keep their shape, cropped to the nearest of a few sizes of about as many pixels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from softrepa_pipeline.tensor_store import StoredRows, TensorStore

if TYPE_CHECKING:
    from jaxtyping import Float, Int

_MAX_RATIO = 2.0
_UNIT = 64  # of the sides, in pixels

Size = tuple[int, int]  # height and width, in pixels


def bucket_sizes(resolution: int) -> list[Size]:
    """The square, and for every other width the largest height with which there are no more pixels, up to 2 : 1.

    Sides are multiples of 64 pixels, of small models' resolutions a quarter.
    """
    unit = min(_UNIT, resolution // 4)
    widths = range(unit, 2 * resolution, unit)
    sizes = ((resolution**2 // width // unit * unit, width) for width in widths if width != resolution)
    return [(resolution, resolution), *(size for size in sizes if max(size) <= _MAX_RATIO * min(size))]


def assign(ratios: Float[np.ndarray, " images"], sizes: Sequence[Size], least: int) -> Int[np.ndarray, " images"]:
    """The nearest size of each image, by the logarithm of width / height, of those that get at least `least` images.

    A size with fewer is given up, that with the fewest (of several the last) first, and its images go to the nearest
    one left.
    """
    wanted = np.log([width / height for height, width in sizes])
    left = np.arange(len(sizes))
    while True:
        bucket = left[np.abs(np.log(ratios)[:, None] - wanted[left]).argmin(axis=1)]
        counts = np.bincount(bucket, minlength=len(sizes))[left]
        if len(left) == 1 or counts.min() >= least:
            return bucket
        left = np.delete(left, np.flatnonzero(counts == counts.min())[-1])


def write_buckets(file: Path, image_ids: Sequence[str], bucket_of: Int[np.ndarray, " images"]) -> None:
    """The bucket of each image as a table, which `latents_by_bucket` reads."""
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(file.name + ".partial")
    pq.write_table(pa.table({"image_id": list(image_ids), "bucket": bucket_of}), partial)
    partial.replace(file)


@final
class BucketedRows:
    """Latents of several shapes, one a bucket; at least one is asked for, all of one bucket."""

    def __init__(self, parts: Mapping[int, StoredRows], bucket_of: Int[np.ndarray, " images"]) -> None:
        self.bucket_of, self._parts = bucket_of, parts
        self._row = np.zeros(len(bucket_of), np.int64)
        for bucket in parts:
            (here,) = np.nonzero(bucket_of == bucket)
            self._row[here] = np.arange(len(here))

    def __len__(self) -> int:
        return len(self.bucket_of)

    def shape_of(self, row: int) -> torch.Size:
        """(channels, height, width) of an image's latents."""
        return self._parts[int(self.bucket_of[row])].shape[1:]

    def __getitem__(self, rows: Tensor) -> Tensor:
        (bucket,) = np.unique(self.bucket_of[rows.numpy()])
        return self._parts[int(bucket)][torch.from_numpy(self._row[rows.numpy()])]


def latents_by_bucket(stores: Sequence[TensorStore], file: Path, image_ids: list[str]) -> BucketedRows:
    """Latents of images whose buckets stand in `file`, from a store for each bucket."""
    table = pq.read_table(file).to_pydict()
    known = dict(zip(table["image_id"], table["bucket"], strict=True))
    bucket_of = np.array([known[image_id] for image_id in image_ids])
    parts = {
        bucket: stores[bucket].rows([image_ids[row] for row in np.flatnonzero(bucket_of == bucket)])
        for bucket in np.unique(bucket_of).tolist()
    }
    return BucketedRows(parts, bucket_of)


def whole_batches(
    order: Int[np.ndarray, " images"], bucket_of: Int[np.ndarray, " images"], size: int
) -> Int[np.ndarray, "batches images"]:
    """Images in their order cut into batches of one bucket each; what is left of a bucket is left out."""
    parts = []
    for bucket in np.unique(bucket_of):
        own = order[bucket_of[order] == bucket]
        parts.append(own[: len(own) // size * size].reshape(-1, size))
    return np.concatenate(parts)
