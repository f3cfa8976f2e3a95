"""Distances between two sets of feature vectors: Fréchet, polynomial kernel (KID) and Gaussian kernel (CMMD)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import Float

from softrepa_pipeline.randomness import numpy_generator

# CMMD's bandwidth and scale (Jayasumana et al. 2024), for CLIP embeddings of unit length.
CMMD_SIGMA, CMMD_SCALE = 10.0, 1000.0
KID_SUBSETS, KID_SUBSET_SIZE = 100, 1000
_ROWS = 1024  # of a kernel matrix at a time

Features = Float[np.ndarray, "images width"]
Kernel = Callable[[Features, Features], np.ndarray]


def gaussian_fit(features: Features) -> tuple[Float[np.ndarray, "width"], Float[np.ndarray, "width width"]]:
    """Mean and unbiased covariance."""
    features = np.asarray(features, dtype=np.float64)
    return features.mean(axis=0), np.atleast_2d(np.cov(features, rowvar=False))


def frechet_distance(
    mean: Float[np.ndarray, "width"],
    covariance: Float[np.ndarray, "width width"],
    other_mean: Float[np.ndarray, "width"],
    other_covariance: Float[np.ndarray, "width width"],
) -> float:
    """‖μ₁ − μ₂‖² + tr(Σ₁ + Σ₂ − 2 (Σ₁Σ₂)^½), the squared Wasserstein distance of two Gaussians."""
    # The trace of (Σ₁Σ₂)^½ is the sum of the singular values of Σ₁^½ Σ₂^½: no complex root, exact on singular sets.
    cross = np.linalg.svd(_root(covariance) @ _root(other_covariance), compute_uv=False).sum()
    apart = ((mean - other_mean) ** 2).sum()
    return float(apart + np.trace(covariance) + np.trace(other_covariance) - 2 * cross)


def _root(covariance: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eigh(covariance)
    return (vectors * np.sqrt(values.clip(min=0))) @ vectors.T


def frechet(real: Features, generated: Features) -> float:
    """The Fréchet distance of two sets, as FID takes it."""
    return frechet_distance(*gaussian_fit(real), *gaussian_fit(generated))


def kernel_distance(real: Features, generated: Features, seed: int = 0) -> float:
    """KID: the unbiased MMD² under (x·y / width + 1)³, averaged over subsets of at most 1000 images."""
    real, generated = (np.asarray(features, dtype=np.float64) for features in (real, generated))
    size = min(KID_SUBSET_SIZE, len(real), len(generated))
    if size == len(real) == len(generated):
        return _unbiased_mmd(real, generated, _cubic)
    values = []
    for subset in range(KID_SUBSETS):
        rng = numpy_generator(seed, "kid", subset)
        first, second = (features[rng.choice(len(features), size, replace=False)] for features in (real, generated))
        values.append(_unbiased_mmd(first, second, _cubic))
    return float(np.mean(values))


def clip_distance(real: Features, generated: Features) -> float:
    """CMMD: 1000 times the biased MMD² under exp(−‖x − y‖² / 2σ²) with σ = 10; sets may differ in size."""
    real, generated = (np.asarray(features, dtype=np.float64) for features in (real, generated))
    within = _kernel_mean(real, real, _gaussian) + _kernel_mean(generated, generated, _gaussian)
    return float(CMMD_SCALE * (within - 2 * _kernel_mean(real, generated, _gaussian)))


def _cubic(x: Features, y: Features) -> np.ndarray:
    return (x @ y.T / x.shape[1] + 1) ** 3


def _gaussian(x: Features, y: Features) -> np.ndarray:
    squares = (x**2).sum(axis=1)[:, None] + (y**2).sum(axis=1) - 2 * x @ y.T
    return np.exp(-squares / (2 * CMMD_SIGMA**2))


def _kernel_mean(x: Features, y: Features, kernel: Kernel) -> float:
    return sum(kernel(x[start : start + _ROWS], y).sum() for start in range(0, len(x), _ROWS)) / (len(x) * len(y))


def _unbiased_mmd(x: Features, y: Features, kernel: Kernel) -> float:
    return _mean_of_pairs(kernel(x, x)) + _mean_of_pairs(kernel(y, y)) - 2 * float(kernel(x, y).mean())


def _mean_of_pairs(within: np.ndarray) -> float:
    """The mean off the diagonal."""
    return float((within.sum() - np.trace(within)) / (len(within) * (len(within) - 1)))
