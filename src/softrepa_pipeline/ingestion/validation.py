"""Checks of one sample: an image under limits that hold before it is decoded, and a caption made canonical."""

from __future__ import annotations

import io
import unicodedata
import warnings
from dataclasses import dataclass

import numpy as np
from PIL import Image

# Formats that Pillow decodes by itself; others may start outside programs (EPS starts Ghostscript).
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
# The joiners are letters' neighbours in Persian and Hindi and hold emoji together.
_JOINERS = "\u200c\u200d"
_DROPPED = frozenset({"Cc", "Cf", "Cs"})
_PILLOW_MAX_PIXELS = 89_478_485
_ORIENTATION_TAG = 0x0112
_ORIENTATIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class BadSample(Exception):
    """A sample that cannot be used; `reason` is the same text for all samples with the same fault."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True)
class Limits:
    """What a sample may measure: bytes of the encoded image, pixels, pixels of the short side, long side over short
    side, characters of a caption."""

    max_bytes: int = 50_000_000
    max_pixels: int = 64_000_000
    min_side: int = 32
    max_aspect_ratio: float = 8.0
    max_caption_chars: int = 2_000

    def __post_init__(self) -> None:
        for name in ("max_bytes", "max_pixels", "min_side", "max_aspect_ratio", "max_caption_chars"):
            if not getattr(self, name) >= 1:
                raise ValueError(f"limits.{name} must be at least 1, not {getattr(self, name)}")
        if self.max_pixels > _PILLOW_MAX_PIXELS:
            raise ValueError(f"limits.max_pixels must be at most {_PILLOW_MAX_PIXELS}, not {self.max_pixels}")


def check_image(data: bytes, limits: Limits) -> Image.Image:
    """Check an encoded image, the cheap checks first, and decode it in full last, as `load_rgb` does.

    Raises:
        BadSample: it breaks a limit, is no image, or does not decode.
    """
    check_size(len(data), limits)
    width, height = _header(data, limits)
    if width * height > limits.max_pixels:
        raise BadSample(f"more than {limits.max_pixels} pixels")
    if min(width, height) < limits.min_side:
        raise BadSample(f"a side below {limits.min_side} pixels")
    if max(width, height) > limits.max_aspect_ratio * min(width, height):
        raise BadSample(f"aspect ratio above {limits.max_aspect_ratio:g}")
    return load_rgb(data)


def check_size(num_bytes: int, limits: Limits) -> None:
    """Check the size of an encoded image, which may still be unread.

    Raises:
        BadSample: it is empty or above the limit.
    """
    if num_bytes == 0:
        raise BadSample("empty file")
    if num_bytes > limits.max_bytes:
        raise BadSample(f"more than {limits.max_bytes} bytes")


def _header(data: bytes, limits: Limits) -> tuple[int, int]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
                return image.size
    except Image.DecompressionBombError as error:
        # Pillow's own limit is twice the largest `max_pixels`, so ours is broken too.
        raise BadSample(f"more than {limits.max_pixels} pixels") from error
    except Exception as error:  # Pillow's readers raise whatever their parsing of foreign bytes runs into.
        raise BadSample("not an image") from error


def load_rgb(data: bytes) -> Image.Image:
    """Decode the first frame upright as 8-bit RGB, transparency over white.

    Raises:
        BadSample: it does not decode, or its pixels have no agreed range (32-bit integers and floats).
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
                image.load()
                turn = _ORIENTATIONS.get(image.getexif().get(_ORIENTATION_TAG, 1))
                rgb = _to_rgb(image)
    except BadSample:
        raise
    except Exception as error:  # As in `_header`.
        raise BadSample("damaged image") from error
    return rgb if turn is None else rgb.transpose(turn)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(white, rgba).convert("RGB")
    if image.mode.startswith("I;16"):
        # Pillow clips instead of scaling, which would make nearly every pixel white.
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise BadSample(f"pixel type {image.mode} has no agreed range")
    return image.convert("RGB")


def clean_caption(text: str, limits: Limits) -> str:
    """Normalise a caption: Unicode NFC, no control or invisible formatting characters, single spaces.

    Raises:
        BadSample: nothing is left of it, or it is too long.
    """
    visible = (
        " " if char.isspace() else char
        for char in text
        if char.isspace() or char in _JOINERS or unicodedata.category(char) not in _DROPPED
    )
    caption = unicodedata.normalize("NFC", " ".join("".join(visible).split()))
    if not caption.strip(_JOINERS + " "):
        raise BadSample("empty caption")
    if len(caption) > limits.max_caption_chars:
        raise BadSample(f"caption longer than {limits.max_caption_chars} characters")
    return caption
