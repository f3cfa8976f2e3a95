"""Tensors by the content that they were made of: one folder for each way of making them, in shards of safetensors.

A key is 32 hex digits, as of the SHA-256 of an image's bytes; the folder's name says what made a tensor of them: model,
transform, number format. A shard holds its keys as well, and its name is its checksum: it counts once it has that name,
whoever wrote it, and what is damaged can be told. A shard's time of modification is when it was last used.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import re
import secrets
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar, final

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from tqdm import tqdm

from softrepa_pipeline.files import write_whole
from softrepa_pipeline.runners import Runner

logger = logging.getLogger(__name__)

Item = TypeVar("Item")

_KEY_BYTES = 16
_KEY = re.compile(r"[0-9a-f]{32}")
_SUFFIX = ".safetensors"
DAMAGED = ".damaged"


def text_key(text: str) -> str:
    """The key of what is made of a text."""
    return hashlib.sha256(text.encode()).hexdigest()[: 2 * _KEY_BYTES]


@dataclass(frozen=True)
class TensorStore:
    """The tensors of one folder, all of one shape and number format; several processes may read and write at once."""

    folder: Path

    def missing(self, keys: Sequence[str]) -> list[str]:
        """Those of the keys that have no tensor here, in order, each once."""
        wanted = list(dict.fromkeys(keys))
        found, _ = self._index().find(wanted)
        return [key for key, shard in zip(wanted, found.tolist(), strict=True) if shard < 0]

    def add(self, keys: Sequence[str], rows: Tensor) -> None:
        """Write `rows` (keys, …) as one shard, on the disk when this returns.

        Raises:
            ValueError: a key is not 32 hex digits, or there are not as many as rows.
            OSError: it could not be written; the store is as it was.
        """
        if len(keys) != len(rows) or not keys:
            raise ValueError(f"{self.folder}: {len(keys)} keys for {len(rows)} rows")
        tensors = {"keys": torch.from_numpy(_packed(keys).view(np.uint8).reshape(-1, _KEY_BYTES).copy()), "rows": rows}
        content = save({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, {"kind": self.kind})
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"{hashlib.sha256(content).hexdigest()[:32]}{_SUFFIX}"
        # Of its own, or two that write the same shard would write into one file.
        write_whole(path, content, path.with_name(f"{path.name}.{secrets.token_hex(4)}.partial"))

    def rows(self, keys: Sequence[str]) -> StoredRows:
        """The tensors of these keys, in their order, memory-mapped; the shards they are in count as used now.

        Raises:
            ValueError: some are missing, or there are no keys.
        """
        index = self._index()
        shard, row = index.find(keys)
        num_missing = int((shard < 0).sum())
        if num_missing or not keys:
            raise ValueError(
                f"{self.folder}: {num_missing} of {len(keys)} tensors are missing; run the stage that makes them again "
                "(--params force=true)"
            )
        used, now = np.unique(shard), time.time_ns()
        for number in used.tolist():
            with contextlib.suppress(OSError):  # a store on a disk that one may only read
                os.utime(index.files[number], ns=(now, now))
        return StoredRows([index.shards[number] for number in used], np.searchsorted(used, shard), row)

    def verify(self, keys: Collection[str] | None = None) -> list[Path]:
        """Compare all shards, or those that hold one of `keys`, with their checksums; returns what is no whole shard.

        That is set aside as `<name>.damaged`, so that its keys are missing.
        """
        index = self._index()
        used = range(len(index.files)) if keys is None else sorted(set(index.find(list(keys))[0].tolist()) - {-1})
        damaged = [*index.left_out, *(index.files[number] for number in used if not _is_whole(index.files[number]))]
        for file in damaged:
            logger.warning("%s is damaged or of another kind: set aside, what it held is made anew", file)
            with contextlib.suppress(FileNotFoundError):  # another process has seen it too
                file.rename(file.with_name(file.name + DAMAGED))
        return damaged

    def __len__(self) -> int:
        return sum(len(shard.rows) for shard in self._index().shards)

    @property
    def kind(self) -> str:
        """What its tensors are, as every shard says of itself: the folder's name."""
        return self.folder.name

    def _index(self) -> _Index:
        files: list[Path] = []
        shards: list[_Shard] = []
        left_out: list[Path] = []
        for file in shard_files(self.folder):
            try:
                shard = _opened(file, self.kind)
            except (OSError, ValueError, SafetensorError) as error:
                logger.warning("%s is left out: %s", file, error)
                left_out.append(file)
                continue
            files.append(file)
            shards.append(shard)
            if shard.form != shards[0].form:
                raise ValueError(f"{files[0]} and {file} hold tensors of different shapes or number formats")
        return _Index(files, shards, left_out)


@final
class StoredRows:
    """Rows (keys, …) of a store; only those that are asked for come into memory."""

    def __init__(self, shards: list[_Shard], shard: np.ndarray, row: np.ndarray) -> None:
        self._shards = [part.rows for part in shards]
        self._shard, self._row = torch.from_numpy(shard), torch.from_numpy(row)
        self.shape = torch.Size((len(row), *self._shards[0].shape[1:]))

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Tensor) -> Tensor:
        shard, row = self._shard[rows], self._row[rows]
        taken = torch.empty((len(rows), *self.shape[1:]), dtype=self._shards[0].dtype)
        for number in shard.unique().tolist():
            here = shard == number
            taken[here] = self._shards[number][row[here]]
        return taken


def fill(
    store: TensorStore,
    items: Mapping[str, Item],
    compute: Callable[[list[Item]], Tensor],
    runner: Runner,
    shard_rows: int,
    label: str,
) -> None:
    """Compute the tensors of those keys of `items` that the store lacks, `shard_rows` to a shard.

    The shards that are there are read first and compared with their checksums, about a second a gigabyte. After a stop
    at any moment the same call goes on with the shards that are missing, and ends with the same files: which items are
    computed together depends on what was missing, not on the stop.
    """
    store.verify(items)
    missing = store.missing(list(items))
    starts = range(0, len(missing), shard_rows)
    shards = [[(key, items[key]) for key in missing[start : start + shard_rows]] for start in starts]
    with tqdm(total=len(items), initial=len(items) - len(missing), desc=label, disable=not missing) as bar:
        for count in runner.map(partial(_add_computed, store, compute), shards):
            bar.update(count)


def _add_computed(store: TensorStore, compute: Callable[[list[Item]], Tensor], shard: list[tuple[str, Item]]) -> int:
    store.add([key for key, _ in shard], compute([item for _, item in shard]))
    return len(shard)


def shard_files(folder: Path) -> list[Path]:
    """The shards of a folder, in the order of their names."""
    return sorted(folder.glob(f"*{_SUFFIX}"))


@dataclass(frozen=True)
class _Shard:
    keys: np.ndarray
    rows: Tensor

    @property
    def form(self) -> tuple[torch.Size, torch.dtype]:
        return self.rows.shape[1:], self.rows.dtype


@dataclass(frozen=True)
class _Index:
    """The shards that can be read, and the files that can not."""

    files: list[Path]
    shards: list[_Shard]
    left_out: list[Path]

    def find(self, keys: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Shard and row of each key, −1 where it has none; of a key in two shards the first."""
        if not self.shards or not keys:
            return np.full(len(keys), -1), np.full(len(keys), -1)
        sizes = [len(shard.keys) for shard in self.shards]
        stored = np.concatenate([shard.keys for shard in self.shards])
        shard = np.repeat(np.arange(len(sizes)), sizes)
        row = np.concatenate([np.arange(size) for size in sizes])
        order, wanted = np.argsort(stored, kind="stable"), _packed(keys)
        place = order[np.searchsorted(stored, wanted, sorter=order).clip(max=len(stored) - 1)]
        is_found = stored[place] == wanted
        return np.where(is_found, shard[place], -1), np.where(is_found, row[place], -1)


def _opened(file: Path, kind: str) -> _Shard:
    with safe_open(file, framework="pt") as opened:
        if (opened.metadata() or {}).get("kind") != kind:
            raise ValueError(f"it holds no tensors of {kind}")
        keys, rows = opened.get_tensor("keys"), opened.get_tensor("rows")
    return _Shard(np.frombuffer(keys.numpy().tobytes(), f"S{_KEY_BYTES}"), rows)


def _is_whole(file: Path) -> bool:
    try:
        with file.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()[: 2 * _KEY_BYTES] == file.stem
    except FileNotFoundError:  # another process has set it aside
        return True


def _packed(keys: Sequence[str]) -> np.ndarray:
    """Keys (keys,) as 16 bytes each."""
    for key in keys:
        if not _KEY.fullmatch(key):
            raise ValueError(f"a key of a tensor store is {2 * _KEY_BYTES} hex digits, not {key!r}")
    return np.frombuffer(bytes.fromhex("".join(keys)), f"S{_KEY_BYTES}")
