"""The disk space that tensor stores take: what is there, and removal of what was not used for longest."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from softrepa_pipeline.tensor_store import DAMAGED, TensorStore, shard_files

logger = logging.getLogger(__name__)

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


def usage(folders: Iterable[Path]) -> list[Usage]:
    """Every store under these folders, the last used first."""
    found = []
    for store in stores_under(folders):
        status = [file.stat() for file in shard_files(store.folder)]
        sizes, times = [one.st_size for one in status], [one.st_mtime for one in status]
        found.append(Usage(store, len(store), len(status), sum(sizes), max(times)))
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
    freed = sum(_removed(file) for store in folders for file in _leftovers(store))
    files = [file for store in stores_under(folders) for file in shard_files(store.folder)]
    status = {file: file.stat() for file in files}
    left = sum(one.st_size for one in status.values())
    for file in sorted(files, key=lambda file: (status[file].st_mtime, file)):
        used, size = status[file].st_mtime, status[file].st_size
        if used < keep_since and (used < unused_since or left > max_bytes):
            freed += _removed(file)
            left -= size
    if left > max_bytes:
        logger.warning("the caches take %.3g GB, above cache.max_gb, and all of it was just used", left / 1e9)
    return freed


def _leftovers(folder: Path) -> Iterator[Path]:
    yield from folder.glob(f"*/*{DAMAGED}")
    for file in folder.glob("*/*.partial"):
        if file.stat().st_mtime < time.time() - _ABANDONED:
            yield file


def _removed(file: Path) -> int:
    size = file.stat().st_size
    file.unlink()
    return size
