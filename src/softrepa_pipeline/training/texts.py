"""Text states of captions: encoded as steps need them, or once for all trainings and memory-mapped from then on."""

from __future__ import annotations

import hashlib
import logging
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import final

import torch
from torch import Tensor

from softrepa_pipeline.backbones import Backbone, ModelConfig, Prompt
from softrepa_pipeline.runners import LocalRunner
from softrepa_pipeline.stage import source_digest
from softrepa_pipeline.tensor_store import StoredRows, TensorStore, fill, text_key
from softrepa_pipeline.training.config import ExecutionConfig
from softrepa_pipeline.training.distributed import Group

logger = logging.getLogger(__name__)

_CAPTIONS_AT_ONCE = 32
_SHARD_BYTES = 2**28
_SHARE = 0.9  # of what is free on the disk: checkpoints, and whoever else writes


@dataclass(frozen=True)
class TextCache:
    """The folder under which text states are kept, and how much they may take in GB of 10⁹ bytes (None: no limit)."""

    folder: str
    max_gb: float | None = None


@final
class StoredTexts:
    """Text states of captions, of which only those that are asked for come into memory."""

    def __init__(self, captions: Sequence[str], rows: StoredRows, example: Prompt) -> None:
        self._place_of = {caption: place for place, caption in enumerate(captions)}
        self._rows, self._shape = rows, example.states.shape[1:]

    def of(self, captions: Sequence[str], device: torch.device) -> Prompt:
        """On the device, in the order of the captions."""
        rows = self._rows[torch.tensor([self._place_of[caption] for caption in captions])].to(device)
        states, pooled = rows.split([self._shape.numel(), rows.shape[1] - self._shape.numel()], dim=1)
        return Prompt(states.unflatten(1, self._shape), pooled if pooled.shape[1] else None)


def encode(backbone: Backbone, captions: Sequence[str]) -> Prompt:
    """Encoded a few at a time, so that text encoders take no more memory for a larger batch."""
    parts = [
        backbone.encode_prompts(list(captions[start : start + _CAPTIONS_AT_ONCE]))
        for start in range(0, len(captions), _CAPTIONS_AT_ONCE)
    ]
    pooled = [part.pooled for part in parts if part.pooled is not None]
    return Prompt(torch.cat([part.states for part in parts]), torch.cat(pooled) if pooled else None)


def are_kept(backbone: Backbone, execution: ExecutionConfig) -> bool:
    """Whether text states are to be kept: as `execution.text_cache` says, else those of a T5, the costly ones."""
    if execution.text_cache is not None:
        return execution.text_cache
    return getattr(backbone.pipeline, "text_encoder_3", None) is not None


def keep_texts(
    backbone: Backbone, model: ModelConfig, captions: Sequence[str], cache: TextCache, group: Group
) -> StoredTexts | None:
    """Text states of all these distinct captions; those that the cache lacks are encoded, by all processes together.

    None, with a warning, where they would take more of the disk than there is.
    """
    example = backbone.encode_prompts([""])
    store, size = text_store(model, example, Path(cache.folder)), row_bytes(example)
    items = {text_key(caption): caption for caption in captions}
    if group.broadcast(int(not _has_room(store, list(items), size, cache))):
        return None
    own = dict(list(items.items())[group.part(len(items))])
    fill(store, own, partial(_rows, backbone), LocalRunner(), max(1, _SHARD_BYTES // size), "encoding captions")
    group.broadcast(0)  # returns when all have written theirs
    return StoredTexts(list(items.values()), store.rows(list(items)), example)


def text_store(model: ModelConfig, example: Prompt, folder: Path) -> TensorStore:
    """Where states of these text encoders, number format and length (the example's) are kept under `folder`."""
    base = Path(model.base)
    if base.is_dir():
        parts = sorted(part for part in base.iterdir() if part.name.startswith(("text_encoder", "tokenizer")))
        encoders = hashlib.sha256("".join(map(source_digest, map(str, parts))).encode()).hexdigest()[:16]
    else:
        encoders = source_digest(model.base, model.revision)
    length, width = example.states.shape[1:]
    named = [encoders, model.variant, model.dtype, model.quantization, None if model.t5 else "no_t5"]
    return TensorStore(folder / "-".join(part for part in [*named, f"{length}x{width}"] if part))


def row_bytes(example: Prompt) -> int:
    """What one caption's states take."""
    return example.states[0].nbytes + (0 if example.pooled is None else example.pooled[0].nbytes)


def _has_room(store: TensorStore, keys: list[str], size: int, cache: TextCache) -> bool:
    root = next(folder for folder in (store.folder, *store.folder.parents) if folder.exists())
    free = _SHARE * shutil.disk_usage(root).free
    allowed = float("inf") if cache.max_gb is None else cache.max_gb * 1e9
    needed, in_all = size * len(store.missing(keys)), size * len(keys)
    if needed <= free and in_all <= allowed:
        return True
    logger.warning(
        "text states of %d captions take %.3g GB, %.3g of them new; %s has %.3g to spare and cache.max_gb is %s: "
        "captions are encoded in each step instead",
        *(len(keys), in_all / 1e9, needed / 1e9, root, free / 1e9, cache.max_gb),
    )
    return False


def _rows(backbone: Backbone, captions: list[str]) -> Tensor:
    """States and pooled states (captions, numbers) in one."""
    prompt = encode(backbone, captions)
    states = prompt.states.flatten(1)
    return (states if prompt.pooled is None else torch.cat([states, prompt.pooled], dim=1)).cpu()
