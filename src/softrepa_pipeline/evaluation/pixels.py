"""Images as arrays and as the tensors that an autoencoder takes."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def to_pixels(images: np.ndarray) -> Tensor:
    """uint8 (images, height, width, 3) as floats in [−1, 1] (images, 3, height, width)."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1


def to_images(pixels: Tensor) -> np.ndarray:
    return ((pixels.permute(0, 2, 3, 1).cpu() + 1) * 127.5).round().byte().numpy()
