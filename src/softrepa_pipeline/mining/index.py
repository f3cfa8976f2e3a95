"""Nearest neighbours by FAISS: the only place that imports it."""

from __future__ import annotations

from collections.abc import Iterator

import faiss
import numpy as np

_BLOCK = 1024  # queries at once: bounds the memory of deep searches


def nearest(vectors: np.ndarray, queries: np.ndarray, count: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """For each query in turn the `count` vectors of highest inner product: their scores and row numbers, (count,)."""
    index = faiss.IndexFlatIP(vectors.shape[1])
    index.add(np.ascontiguousarray(vectors, dtype=np.float32))
    for start in range(0, len(queries), _BLOCK):
        block = np.ascontiguousarray(queries[start : start + _BLOCK], dtype=np.float32)
        yield from zip(*index.search(block, min(count, len(vectors))), strict=True)
