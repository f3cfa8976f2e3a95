"""The exact verifier: finds the objects in an image from its pixels alone and judges claims by them, as GenEval."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw
from scipy import ndimage

from softrepa_pipeline.shapes.claims import Claim, is_true
from softrepa_pipeline.shapes.scene import BACKGROUNDS, COLORS, SHAPES, SIZES, draw_shape

# Chroma = max − min of the channels, in [0, 1]. Every grey has none, every object colour at least 0.48.
_MIN_CHROMA = 0.22
_MIN_AREA = 14
_MIN_IOU = 0.75
_SUPERSAMPLING = 8
_SIZE_BORDER = (SIZES["small"][1] + SIZES["large"][0]) / 2
_REFERENCE = np.array([np.array(rgb) - min(rgb) for rgb in COLORS.values()], dtype=np.float32)
_REFERENCE /= np.linalg.norm(_REFERENCE, axis=1, keepdims=True)


@dataclass(frozen=True)
class Seen:
    """An object found in an image: centre and extent in pixels, and how well its shape fits (IoU)."""

    shape: str
    color: str
    size: str
    x: float
    y: float
    fit: float


@dataclass(frozen=True)
class Sight:
    things: tuple[Seen, ...]
    background: str


def _ideal(shape: str, area: float, centroid: tuple[float, float], side: tuple[int, int]) -> tuple[np.ndarray, float]:
    """Draw the shape that has this area and centroid; returns its coverage (height, width) and its extent in pixels."""
    extent = float(np.sqrt(area * {"circle": 4 / np.pi, "square": 1.0, "triangle": 2.0}[shape]))
    x, y = centroid[0], centroid[1] - (extent / 6 if shape == "triangle" else 0)
    canvas = Image.new("L", (side[1] * _SUPERSAMPLING, side[0] * _SUPERSAMPLING), 0)
    draw_shape(ImageDraw.Draw(canvas), shape, (x * _SUPERSAMPLING, y * _SUPERSAMPLING), extent * _SUPERSAMPLING, 255)
    return np.asarray(canvas.reduce(_SUPERSAMPLING), dtype=np.float32) / 255, extent


def look(image: np.ndarray) -> Sight:
    """Find every object in a uint8 (height, width, 3) image: connected pixels of one hue whose outline fits a shape."""
    rgb = image.astype(np.float32) / 255
    low = rgb.min(axis=2)
    chroma = rgb.max(axis=2) - low
    colorful = chroma > _MIN_CHROMA
    hue = np.argmax((rgb - low[..., None]) @ _REFERENCE.T, axis=2)
    things = []
    for index, color in enumerate(COLORS):
        labels, _ = ndimage.label(colorful & (hue == index))
        for number, box in enumerate(ndimage.find_objects(labels), start=1):
            # One pixel more on each side: faint edge pixels carry the object's exact area.
            window = tuple(slice(max(0, s.start - 1), s.stop + 1) for s in box)
            own = ndimage.binary_dilation(labels[window] == number, np.ones((3, 3)))
            others = colorful[window] & (labels[window] != number)
            seen = _recognise(np.where(own & ~others, chroma[window], 0), window, color)
            if seen is not None:
                things.append(seen)
    ground = float(np.median(rgb.mean(axis=2)[~ndimage.binary_dilation(colorful)])) * 255 if not colorful.all() else 0.0
    tone = min(BACKGROUNDS, key=lambda name: abs(ground - sum(BACKGROUNDS[name]) / 2))
    return Sight(tuple(things), tone)


def _recognise(chroma: np.ndarray, window: tuple[slice, ...], color: str) -> Seen | None:
    # Grey has no chroma, so chroma relative to the object's own is the covered part of a pixel.
    coverage = np.minimum(chroma / np.quantile(chroma[chroma > _MIN_CHROMA], 0.75), 1)
    area = float(coverage.sum())
    if area < _MIN_AREA:
        return None
    rows, columns = np.indices(coverage.shape)
    centroid = (float((coverage * columns).sum() / area) + 0.5, float((coverage * rows).sum() / area) + 0.5)
    fits, extents = {}, {}
    for shape in SHAPES:
        ideal, extents[shape] = _ideal(shape, area, centroid, coverage.shape)
        # The ideal is cut off at the window: what lies beyond counts as missed through the larger extent.
        fits[shape] = float(np.minimum(coverage, ideal).sum() / np.maximum(coverage, ideal).sum())
    best = max(fits, key=fits.__getitem__)
    if fits[best] < _MIN_IOU:
        return None
    lift = extents[best] / 6 if best == "triangle" else 0.0
    x, y = window[1].start + centroid[0], window[0].start + centroid[1] - lift
    size = "small" if extents[best] < _SIZE_BORDER else "large"
    return Seen(best, color, size, x, y, fits[best])


def verify(image: np.ndarray, claim: Claim) -> bool:
    """Whether the image bears the claim out."""
    sight = look(image)
    return is_true(claim, sight.things, sight.background)
