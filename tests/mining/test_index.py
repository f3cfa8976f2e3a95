from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from softrepa_pipeline.mining import exact
from softrepa_pipeline.mining.exact import exact_neighbors
from softrepa_pipeline.mining.index import IndexConfig, NeighborIndex, build_index, choose_factory, index_bytes


def unit_vectors(count: int, width: int, seed: int = 0) -> np.ndarray:
    """Vectors in clusters, as embeddings are: on evenly spread ones no code of a few bytes finds anything."""
    rng = np.random.default_rng(seed)
    centers = rng.normal(size=(50, width))
    vectors = centers[rng.integers(50, size=count)] + 0.5 * rng.normal(size=(count, width))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def searched(index: NeighborIndex, queries: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    scores, rows = zip(*index.search(queries, count), strict=True)
    return np.concatenate(scores), np.concatenate(rows)


@pytest.mark.parametrize("count", [1, 7, 64, 500, 5000])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_exact_neighbors_equal_a_full_sort(count: int, dtype: type, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exact, "VECTORS_AT_ONCE", 1500)
    monkeypatch.setattr(exact, "QUERIES_AT_ONCE", 30)
    vectors, queries = unit_vectors(4003, 16).astype(dtype), unit_vectors(70, 16, seed=1).astype(dtype)
    scores, rows = (np.concatenate(part) for part in zip(*exact_neighbors(vectors, queries, count), strict=True))
    products = queries.astype(np.float32) @ vectors.astype(np.float32).T
    assert rows.shape == (70, min(count, 4003))
    np.testing.assert_allclose(scores, np.sort(products)[:, ::-1][:, :count], atol=1e-6)
    np.testing.assert_allclose(np.take_along_axis(products, rows, 1), scores, atol=1e-6)
    assert all(len(set(found)) == len(found) for found in rows.tolist())


def test_vectors_may_lie_on_disk(tmp_path: Path) -> None:
    vectors = unit_vectors(1000, 8)
    np.save(tmp_path / "vectors.npy", vectors)
    stored = np.load(tmp_path / "vectors.npy", mmap_mode="r")
    for index in (build_index(stored, IndexConfig()), build_index(stored, IndexConfig(factory="IVF8,PQ4x4"))):
        np.testing.assert_array_equal(
            searched(index, stored[:9], 5)[1],
            searched(build_index(vectors, IndexConfig(factory=index.factory)), vectors[:9], 5)[1],
        )


def test_the_index_follows_from_size_and_budget() -> None:
    assert choose_factory(1_000_000, 512, IndexConfig()) == "Flat"
    assert choose_factory(1_000_001, 512, IndexConfig(memory_gib=4)) == "HNSW32,Flat"
    assert choose_factory(12_000_000, 512, IndexConfig(memory_gib=4)) == "IVF16384,PQ256"
    assert choose_factory(12_000_000, 512, IndexConfig(memory_gib=1)) == "IVF16384,PQ64"
    with pytest.raises(ValueError, match=r"mine\.index\.memory_gib is 0\.1, .* IVF16384,PQ32, takes 0\.5 GiB"):
        choose_factory(12_000_000, 512, IndexConfig(memory_gib=0.1))


@pytest.mark.parametrize("factory", ["HNSW32,Flat", "IVF64,PQ16x4", "IVF64,Flat", "IVF64,SQ8"])
def test_the_size_of_an_index_is_known_before_it_is_made(factory: str, tmp_path: Path) -> None:
    vectors = unit_vectors(5000, 64)
    build_index(vectors, IndexConfig(factory=factory), file=tmp_path / "index.faiss")
    assert index_bytes(factory, *vectors.shape) == pytest.approx((tmp_path / "index.faiss").stat().st_size, rel=0.05)


@pytest.mark.parametrize("factory", ["HNSW32,Flat", "IVF64,PQ16x4", "PCA32,IVF64,Flat"])
def test_an_approximate_search_is_widened_to_its_recall_and_gives_true_scores(factory: str, tmp_path: Path) -> None:
    vectors, queries = unit_vectors(5000, 64), unit_vectors(300, 64, seed=1)
    index = build_index(vectors, IndexConfig(factory=factory, target_recall=0.9), queries, tmp_path / "index.faiss")
    scores, rows = searched(index, queries, 64)
    true = np.concatenate([rows for _, rows in exact_neighbors(vectors, queries, 64)])
    found = np.mean([np.isin(one, other).mean() for one, other in zip(true, rows, strict=True)])
    assert index.recall >= 0.9
    assert found == pytest.approx(index.recall, abs=0.02)
    np.testing.assert_allclose(scores, np.take_along_axis(queries @ vectors.T, rows, 1), atol=1e-6)
    assert (np.diff(scores, axis=1) <= 0).all()
    assert index.report()["recall"] == index.recall


def test_an_index_that_cannot_reach_its_recall_says_so() -> None:
    evenly_spread = np.random.default_rng(0).normal(size=(20_000, 64)).astype(np.float32)
    index = build_index(evenly_spread, IndexConfig(factory="IVF16,PQ2x4", target_recall=0.99))
    assert 0 < index.recall < 0.9


def test_training_depends_on_the_seed_alone() -> None:
    vectors, queries = unit_vectors(5000, 32), unit_vectors(50, 32, seed=1)
    config = IndexConfig(factory="IVF64,PQ4x4", target_recall=0.1)
    first, second = (searched(build_index(vectors, config), queries, 20)[1] for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_what_a_search_cannot_fill_is_marked() -> None:
    vectors = unit_vectors(400, 16)
    index = build_index(vectors, IndexConfig(factory="IVF100,Flat", target_recall=0.01))
    scores, rows = searched(index, vectors[:20], 400)
    assert (rows == -1).any()
    assert np.isneginf(scores[rows == -1]).all()


def test_wrong_settings_are_named() -> None:
    with pytest.raises(ValueError, match=r"mine\.index\.factory: no FAISS index 'IVX3,Flat' of width 16"):
        build_index(unit_vectors(100, 16), IndexConfig(factory="IVX3,Flat"))
    with pytest.raises(ValueError, match=r"mine\.index\.target_recall must be in \(0, 1\], not 1\.5"):
        IndexConfig(target_recall=1.5)
