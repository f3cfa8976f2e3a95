"""The disk space that tensor stores take: what is there, and removal of what was not used for longest."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from softrepa_pipeline.tensor_store import DAMAGED, TensorStore, shard_files

logger = logging.getLogger(__name__)

_FOLDERS = ("latents", "clip", "texts")
_ABANDONED = 3600.0  # seconds after which a file that is still partial has no writer


@dataclass(frozen=True)
class CacheConfig:
    """How much all stores together may take on disk, in GB of 10⁹ bytes; None is no limit."""

    max_gb: float | None = None

    def __post_init__(self) -> None:
        if self.max_gb is not None and not self.max_gb > 0:
            raise ValueError(f"cache.max_gb must be above 0, or null for no limit, not {self.max_gb}")

    @property
    def max_bytes(self) -> float:
        return math.inf if self.max_gb is None else self.max_gb * 1e9


@dataclass(frozen=True)
class Usage:
    """One store: its tensors, its shards' number and size, and when one was last used (seconds since 1970)."""

    store: TensorStore
    num_tensors: int
    num_shards: int
    num_bytes: int
    last_used: float


def cache_folders(folders: dict[str, str]) -> list[Path]:
    """Of the folders that are configured those that hold stores."""
    return [Path(folders[name]) for name in _FOLDERS]


def usage(folders: Iterable[Path]) -> list[Usage]:
    """Every store under these folders, the last used first."""
    found = []
    for store in stores_under(folders):
        status = _status(shard_files(store.folder)).values()
        num_bytes, last_used = sum(one.st_size for one in status), max((one.st_mtime for one in status), default=0.0)
        found.append(Usage(store, len(store), len(status), num_bytes, last_used))
    return sorted(found, key=lambda one: -one.last_used)


def stores_under(folders: Iterable[Path]) -> list[TensorStore]:
    """The stores right below these folders."""
    inner = (folder for root in folders if root.is_dir() for folder in sorted(root.iterdir()))
    return [TensorStore(folder) for folder in inner if shard_files(folder)]


@contextmanager
def limited(folders: Iterable[Path], config: CacheConfig) -> Iterator[None]:
    """Hold the limit after what is done inside, which keeps all that it has used itself."""
    folders, started = list(folders), time.time()
    yield
    prune(folders, config.max_bytes, keep_since=started)


def prune(
    folders: Iterable[Path], max_bytes: float = math.inf, unused_since: float = 0.0, keep_since: float = math.inf
) -> int:
    """Remove shards that were last used before `unused_since`, then the oldest until `max_bytes` are left.

    Those used after `keep_since` stay in any case. What writers left behind and damaged shards go too. Returns the
    bytes that are free now.
    """
    folders = list(folders)
    leftovers = [file for folder in folders for file in _leftovers(folder)]
    shards = _status(file for store in stores_under(folders) for file in shard_files(store.folder))
    left = sum(one.st_size for one in shards.values())
    gone = []
    for file, one in sorted(shards.items(), key=lambda item: (item[1].st_mtime, item[0])):
        if one.st_mtime < keep_since and (one.st_mtime < unused_since or left > max_bytes):
            gone.append(file)
            left -= one.st_size
    if left > max_bytes:
        logger.warning("the caches take %.3g GB, above cache.max_gb, and all of it was just used", left / 1e9)
    return sum(map(_remove, [*leftovers, *gone]))


def _status(files: Iterable[Path]) -> dict[Path, os.stat_result]:
    """Of the files that another process has not just removed."""
    status = {}
    for file in files:
        with contextlib.suppress(FileNotFoundError):
            status[file] = file.stat()
    return status


def _leftovers(folder: Path) -> list[Path]:
    partial = _status(folder.glob("*/*.partial"))
    abandoned = [file for file, one in partial.items() if one.st_mtime < time.time() - _ABANDONED]
    return [*folder.glob(f"*/*{DAMAGED}"), *abandoned]


def _remove(file: Path) -> int:
    """The bytes that are free now."""
    status = _status([file])
    file.unlink(missing_ok=True)
    return sum(one.st_size for one in status.values())
