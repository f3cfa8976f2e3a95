"""Exact nearest neighbours of as many vectors as COCO has captions, against the matrix product of the same blocks."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import memory_mib, side_by_side

from softrepa_pipeline.mining.exact import QUERIES_AT_ONCE, VECTORS_AT_ONCE, exact_neighbors

_NEIGHBORS = 64
_NUM_VECTORS, _WIDTH = 162_150, 512
_NUM_QUERIES = 8192  # a twentieth, so that rounds fit in a minute
_ROUNDS = 5
_THREADS = 2


def measure(vectors: np.ndarray | None = None, num_queries: int = _NUM_QUERIES) -> dict[str, Any]:
    """`knn_over_gemm`, both seconds and GFLOP/s of the product, and the peak memory of the search above the vectors."""
    vectors = _random_vectors(_NUM_VECTORS, _WIDTH) if vectors is None else vectors
    queries = vectors[:num_queries]
    before = torch.get_num_threads()
    torch.set_num_threads(_THREADS)
    product, search, ratio = side_by_side(
        lambda _: _multiply(vectors, queries), lambda _: _search(vectors, queries), _ROUNDS
    )
    peak = _peak(vectors, queries)
    torch.set_num_threads(before)
    speed = 2 * len(queries) * vectors.size / product / 1e9
    print(
        f"{len(vectors)} × {vectors.shape[1]}, {len(queries)} queries, k = {_NEIGHBORS}, {_THREADS} threads: "
        f"search {search:.2f} s, product {product:.2f} s ({speed:.0f} GFLOP/s), ratio {ratio:.2f}; "
        f"{peak:.0f} MiB above the vectors",
        flush=True,
    )
    return {"knn_over_gemm": ratio, "knn_seconds": [search, product], "knn_gflops": speed, "knn_peak_mib": peak}


def _multiply(vectors: np.ndarray, queries: np.ndarray) -> None:
    """The product alone, into one buffer, in the blocks that the search multiplies."""
    rows, columns = torch.from_numpy(queries), torch.from_numpy(vectors)
    buffer = torch.empty(QUERIES_AT_ONCE * VECTORS_AT_ONCE)
    for block in rows.split(QUERIES_AT_ONCE):
        for part in columns.split(VECTORS_AT_ONCE):
            torch.mm(block, part.T, out=buffer[: len(block) * len(part)].view(len(block), len(part)))


def _search(vectors: np.ndarray, queries: np.ndarray) -> None:
    for _ in exact_neighbors(vectors, queries, _NEIGHBORS):
        pass


def _peak(vectors: np.ndarray, queries: np.ndarray) -> float:
    idle = memory_mib("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
    _search(vectors, queries)
    return memory_mib("VmHWM") - idle


def _random_vectors(count: int, width: int) -> np.ndarray:
    vectors = np.random.default_rng(0).standard_normal((count, width), dtype=np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def growth(vectors: np.ndarray, num_queries: int) -> None:
    """How time and memory of the search alone grow with the corpus."""
    torch.set_num_threads(_THREADS)
    for count in (10_000, 40_000, len(vectors)):
        part = vectors[:count]
        queries = part[:num_queries]
        started = time.perf_counter()
        _search(part, queries)
        seconds = time.perf_counter() - started
        print(f"{count}: {seconds:.2f} s for {len(queries)} queries, {_peak(part, queries):.0f} MiB", flush=True)


if __name__ == "__main__":
    measure(np.load(sys.argv[1])) if len(sys.argv) > 1 else measure()
