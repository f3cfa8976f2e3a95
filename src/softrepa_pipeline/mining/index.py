"""Nearest neighbours of any number of vectors: exactly, or by a FAISS index. The only place that imports it."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import faiss
import numpy as np
from tqdm import tqdm

from softrepa_pipeline.mining.corpus import as_float32
from softrepa_pipeline.mining.exact import exact_neighbors
from softrepa_pipeline.randomness import derived_seed, numpy_generator

logger = logging.getLogger(__name__)

EXACT = "Flat"
_RECALL_AT = 64
_SAMPLE_QUERIES = 256
_ADDED_AT_ONCE = 1 << 16
_SEARCHED_AT_ONCE = 1024
_TRAINED_PER_LIST = 64  # FAISS warns below 39 and draws a sample of its own above 256
_HNSW_LINKS = 32
_PQ_DIMENSIONS = (2, 4, 8, 16)  # of a vector behind one byte of its code, from large indexes to small ones
_FETCHED_PER_NEIGHBOR = 8  # codes are coarse: so many times the neighbours are fetched and ranked by their vectors


@dataclass(frozen=True)
class IndexConfig:
    """Search is exact up to `max_exact` vectors; above that by HNSW where `memory_gib` holds one, else by IVF-PQ.

    An approximate search is widened until it finds `target_recall` of the true 64 nearest of a sample of the queries.
    `factory`, a string of `faiss.index_factory`, overrides the choice of the index: "Flat" is exact at any size.
    """

    max_exact: int = 1_000_000
    memory_gib: float = 4.0
    target_recall: float = 0.95
    factory: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.target_recall <= 1:
            raise ValueError(f"mine.index.target_recall must be in (0, 1], not {self.target_recall}")
        if self.max_exact < 0:
            raise ValueError(f"mine.index.max_exact must not be negative, not {self.max_exact}")
        if self.memory_gib <= 0:
            raise ValueError(f"mine.index.memory_gib must be positive, not {self.memory_gib}")


@final
@dataclass(frozen=True)
class NeighborIndex:
    """Vectors (vectors, width) made searchable by inner product; `recall` was measured against exact search."""

    vectors: np.ndarray
    factory: str = EXACT
    recall: float = 1.0
    approximate: Any = None

    def search(self, queries: np.ndarray, count: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Blocks of queries in turn: scores and rows (queries, count) of their neighbours, best first.

        Scores are the vectors' own inner products, whatever the index stores. A place that an approximate search could
        not fill has the score −inf and the row −1.
        """
        count = min(count, len(self.vectors))
        if self.approximate is None:
            yield from exact_neighbors(self.vectors, queries, count)
            return
        for start in range(0, len(queries), _SEARCHED_AT_ONCE):
            yield self._approximate_block(as_float32(queries[start : start + _SEARCHED_AT_ONCE]), count)

    def _approximate_block(self, queries: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        _, found = self.approximate.search(queries, min(count * _FETCHED_PER_NEIGHBOR, len(self.vectors)))
        scores = np.full((len(queries), count), -np.inf, np.float32)
        rows = np.full((len(queries), count), -1, np.int64)
        for number, (query, fetched) in enumerate(zip(queries, found, strict=True)):
            kept = np.sort(fetched[fetched >= 0])
            exact = as_float32(self.vectors[kept]) @ query
            order = np.argsort(-exact, kind="stable")[:count]
            scores[number, : len(order)], rows[number, : len(order)] = exact[order], kept[order]
        return scores, rows

    def report(self) -> dict[str, Any]:
        """Kind, size and measured recall, for people and trackers."""
        num, width = self.vectors.shape
        return {
            "factory": self.factory,
            "num_vectors": num,
            "bytes": index_bytes(self.factory, num, width),
            "recall": self.recall,
        }


def build_index(
    vectors: np.ndarray, config: IndexConfig, queries: np.ndarray | None = None, file: Path | None = None
) -> NeighborIndex:
    """An index of `vectors`, float32 or float16, memory-mapped or not, for queries like `queries` (default: vectors).

    An approximate index is written to `file` where one is given and then read from there, memory-mapped as far as FAISS
    can.

    Raises:
        ValueError: no index fits `config.memory_gib`, or FAISS does not know `config.factory`.
    """
    factory = config.factory or choose_factory(len(vectors), vectors.shape[1], config)
    if factory == EXACT:
        return NeighborIndex(vectors)
    approximate = _train(vectors, factory, config.seed)
    starts = range(0, len(vectors), _ADDED_AT_ONCE)
    for start in tqdm(starts, desc=f"indexing ({factory})", mininterval=2, disable=len(starts) < 4):
        approximate.add(as_float32(vectors[start : start + _ADDED_AT_ONCE]))
    if file is not None:
        approximate = _through_file(approximate, file)
    if faiss.get_num_gpus() and "HNSW" not in factory:
        approximate = faiss.index_cpu_to_all_gpus(approximate)
    return _widened(NeighborIndex(vectors, factory, 0.0, approximate), vectors if queries is None else queries, config)


def choose_factory(num_vectors: int, width: int, config: IndexConfig) -> str:
    """The FAISS factory string for a corpus, from its size and the memory budget.

    Raises:
        ValueError: even the smallest code does not fit the budget.
    """
    if num_vectors <= config.max_exact:
        return EXACT
    lists = 2 ** round(np.log2(4 * num_vectors**0.5))
    codes = [width // step for step in _PQ_DIMENSIONS if width % step == 0]
    options = [f"HNSW{_HNSW_LINKS},Flat", *(f"IVF{lists},PQ{code}" for code in codes)]
    budget = config.memory_gib * 2**30
    for factory in options:
        if index_bytes(factory, num_vectors, width) <= budget:
            return factory
    least = index_bytes(options[-1], num_vectors, width) / 2**30
    raise ValueError(
        f"mine.index.memory_gib is {config.memory_gib}, but the smallest index of {num_vectors} vectors of width "
        f"{width}, {options[-1]}, takes {least:.1f} GiB"
    )


def index_bytes(factory: str, num_vectors: int, width: int) -> int:
    """Bytes that an index takes, in memory and on disk, known before it is made.

    Raises:
        ValueError: FAISS does not know the factory string.
    """
    index = _empty(factory, width)
    if isinstance(index, faiss.IndexHNSW):
        hnsw: Any = index.hnsw
        links = hnsw.cum_nb_neighbors(1) * 4
        # A vector also stands in the next layer with probability 1 / links; its level and its links' place are stored.
        return num_vectors * (
            faiss.downcast_index(index.storage).sa_code_size() + links + links // 2 // _HNSW_LINKS + 12
        )
    inverted = faiss.try_extract_index_ivf(index)
    if inverted is None:
        return num_vectors * index.sa_code_size()
    codebooks = 4 * width * (inverted.nlist + (inverted.pq.ksub if hasattr(inverted, "pq") else 0))
    return num_vectors * (inverted.code_size + 8) + codebooks


def _empty(factory: str, width: int) -> Any:
    try:
        return faiss.index_factory(width, factory, faiss.METRIC_INNER_PRODUCT)
    except RuntimeError as error:
        reason = str(error).rstrip().splitlines()[-1]
        raise ValueError(f"mine.index.factory: no FAISS index {factory!r} of width {width}: {reason}") from None


def _train(vectors: np.ndarray, factory: str, seed: int) -> Any:
    index = _empty(factory, vectors.shape[1])
    inverted = faiss.try_extract_index_ivf(index)
    if inverted is not None:
        inverted.cp.seed = derived_seed(seed, "coarse quantiser") % 2**31
    if not index.is_trained:
        wanted = _TRAINED_PER_LIST * (inverted.nlist if inverted is not None else 256)
        rng = numpy_generator(seed, "training vectors of the index")
        sample = np.sort(rng.permutation(len(vectors))[:wanted])
        index.train(as_float32(vectors[sample]))
    return index


def _through_file(index: Any, file: Path) -> Any:
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(file.name + ".partial")
    faiss.write_index(index, str(partial))
    os.replace(partial, file)
    return faiss.read_index(str(file), faiss.IO_FLAG_MMAP)


def _widened(index: NeighborIndex, queries: np.ndarray, config: IndexConfig) -> NeighborIndex:
    """Search twice as wide until the sample's recall is reached, or nothing is left to widen."""
    rng = numpy_generator(config.seed, "recall of the index")
    sample = queries[np.sort(rng.permutation(len(queries))[:_SAMPLE_QUERIES])]
    true = np.concatenate([rows for _, rows in exact_neighbors(index.vectors, sample, _RECALL_AT)])
    inverted = faiss.try_extract_index_ivf(index.approximate)
    name, most = ("nprobe", inverted.nlist) if inverted is not None else ("efSearch", len(index.vectors))
    width = 16
    while True:
        if inverted is not None or "HNSW" in index.factory:
            faiss.ParameterSpace().set_index_parameter(index.approximate, name, min(width, most))
        found = np.concatenate([rows for _, rows in index.search(sample, _RECALL_AT)])
        recall = float(np.mean([np.isin(one, other).mean() for one, other in zip(true, found, strict=True)]))
        logger.info("index %s: recall@%d %.3f at %s %d", index.factory, _RECALL_AT, recall, name, min(width, most))
        if recall >= config.target_recall or width >= most or not ("IVF" in index.factory or "HNSW" in index.factory):
            return NeighborIndex(index.vectors, index.factory, recall, index.approximate)
        width *= 2
