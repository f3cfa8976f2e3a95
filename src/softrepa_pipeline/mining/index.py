"""Nearest neighbours by FAISS: the only place that imports it."""

from __future__ import annotations

import faiss
import numpy as np


def nearest(vectors: np.ndarray, queries: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The `count` vectors of highest inner product for each query: scores and row numbers, both (queries, count)."""
    index = faiss.IndexFlatIP(vectors.shape[1])
    index.add(np.ascontiguousarray(vectors, dtype=np.float32))
    return index.search(np.ascontiguousarray(queries, dtype=np.float32), min(count, len(vectors)))
