"""Named random generators: every draw is a pure function of (seed, purpose, indices), whatever ran before it."""

from __future__ import annotations

import hashlib

import numpy as np
import torch


def derived_seed(seed: int, purpose: str, *indices: int) -> int:
    """A 63-bit seed for one purpose, e.g. `derived_seed(0, "noise", step)`."""
    text = "/".join([str(seed), purpose, *map(str, indices)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def torch_generator(seed: int, purpose: str, *indices: int) -> torch.Generator:
    return torch.Generator().manual_seed(derived_seed(seed, purpose, *indices))


def numpy_generator(seed: int, purpose: str, *indices: int) -> np.random.Generator:
    return np.random.default_rng(derived_seed(seed, purpose, *indices))
