"""CLIP embeddings on disk: each image and each caption is embedded once for all data sets that it is in.

They have CLIP's own width (`projection_dim`: 512 for ViT-B, 768 for ViT-L) and unit length, and are kept in half
precision. Rounding moves each number by at most 2⁻¹¹ of itself; what is read has unit length again, in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from softrepa_pipeline.mining.embed import ClipEncoder
from softrepa_pipeline.runners import LocalRunner, Runner
from softrepa_pipeline.stage import source_digest
from softrepa_pipeline.tensor_store import TensorStore, fill, text_key

_SHARD_ROWS = 2048
_IMAGES_AT_ONCE = 128

Read = Callable[[list[int]], Iterable[Image.Image]]


@dataclass(frozen=True)
class Embeddings:
    """Embeddings by one CLIP, kept under `folder`; those that it lacks are computed where the runner says.

    `clip` is a folder or a hub id. `read` gives the RGB images at some places of the data set, in their order; it is
    pickled where the runner has other processes.
    """

    clip: str
    folder: Path
    read: Read
    device: str = "cpu"
    runner: Runner = LocalRunner()  # noqa: RUF009 - frozen

    def of_images(self, image_ids: Sequence[str]) -> np.ndarray:
        """(images, width), float32, of the data set's images in their order."""
        places = {image_id: place for place, image_id in enumerate(image_ids)}
        return self._kept(self._store("images"), places, list(image_ids), _Images(self.clip, self.device, self.read))

    def of_captions(self, captions: Sequence[str]) -> np.ndarray:
        """(captions, width), float32."""
        keys = [text_key(caption) for caption in captions]
        items = dict(zip(keys, captions, strict=True))
        return self._kept(self._store("captions"), items, keys, _Captions(self.clip, self.device))

    def _kept(
        self, store: TensorStore, items: dict[str, Any], keys: list[str], compute: Callable[[list[Any]], Tensor]
    ) -> np.ndarray:
        fill(store, items, compute, self.runner, _SHARD_ROWS, f"embedding {store.kind.rpartition('-')[2]}")
        return F.normalize(store.rows(keys)[torch.arange(len(keys))].float(), dim=-1).numpy()

    def _store(self, what: str) -> TensorStore:
        return TensorStore(self.folder / f"{self._digest}-float16-{what}")

    @cached_property
    def _digest(self) -> str:
        return source_digest(self.clip)


@dataclass(frozen=True)
class _Clip:
    """CLIP is loaded when the first embeddings are asked for."""

    clip: str
    device: str

    @cached_property
    def _encoder(self) -> ClipEncoder:
        return ClipEncoder(self.clip, self.device)


@dataclass(frozen=True)
class _Captions(_Clip):
    def __call__(self, captions: list[str]) -> Tensor:
        return torch.from_numpy(self._encoder.captions(captions)).half()


@dataclass(frozen=True)
class _Images(_Clip):
    read: Read

    def __call__(self, places: list[int]) -> Tensor:
        images, parts = iter(self.read(places)), []
        while batch := list(islice(images, _IMAGES_AT_ONCE)):
            parts.append(torch.from_numpy(self._encoder.images(batch)))
        return torch.cat(parts).half()
