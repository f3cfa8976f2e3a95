"""Other looks of the same scenes: a shift of domain that leaves every caption true."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy import ndimage

from softrepa_pipeline.randomness import numpy_generator
from softrepa_pipeline.shapes.scene import IMAGE_SIZE, Scene, ground_of, objects_of, over, render

# In grey levels. Texture is light and shade alone, which leaves every hue, and the verifier's chroma, as it is.
_STRIPES = 30.0
_CLOUDS = 24.0


def render_textured(scene: Scene) -> np.ndarray:
    """Draw striped objects on a clouded background; uint8 (32, 32, 3), a function of the scene alone."""
    rng = numpy_generator(0, f"textures of {scene}")
    colors, coverage = objects_of(scene)
    return over(np.clip(colors + _stripes(rng), 0, 255), coverage, np.clip(ground_of(scene) + _clouds(rng), 0, 255))


def _stripes(rng: np.random.Generator) -> np.ndarray:
    """Parallel waves (32, 32, 1) of any direction, three to five pixels long."""
    angle, period, phase = rng.uniform(0, np.pi), rng.uniform(3, 5), rng.uniform(0, 2 * np.pi)
    rows, columns = np.indices((IMAGE_SIZE, IMAGE_SIZE))
    along = rows * np.sin(angle) + columns * np.cos(angle)
    return _STRIPES * np.sin(2 * np.pi * along / period + phase)[..., None]


def _clouds(rng: np.random.Generator) -> np.ndarray:
    """Smooth noise (32, 32, 1)."""
    noise = ndimage.gaussian_filter(rng.standard_normal((IMAGE_SIZE, IMAGE_SIZE)), 1.5, mode="wrap")
    return _CLOUDS * (noise / np.abs(noise).max())[..., None]


RENDERERS: dict[str, Callable[[Scene], np.ndarray]] = {"plain": render, "textured": render_textured}
