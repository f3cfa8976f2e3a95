"""Images as arrays, as the tensors that an autoencoder takes, and as files."""

from __future__ import annotations

import base64
import io
import os
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from softrepa_pipeline.files import write_whole


def to_pixels(images: np.ndarray) -> Tensor:
    """uint8 (images, height, width, 3) as floats in [−1, 1] (images, 3, height, width)."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1


def to_images(pixels: Tensor) -> np.ndarray:
    return ((pixels.permute(0, 2, 3, 1).cpu() + 1) * 127.5).round().byte().numpy()


def read_kept(file: Path) -> np.ndarray | None:
    """Pixels (height, width, 3) of an image that was kept earlier; None where it is not there or damaged."""
    try:
        with Image.open(file) as image:
            return np.array(image.convert("RGB"))
    except (OSError, SyntaxError):  # Pillow calls a broken PNG a SyntaxError, and all its other complaints an OSError
        return None


def keep(file: Path, image: np.ndarray) -> None:
    """Write an image for `read_kept`; other processes may write the same one."""
    write_image(file, image, file.with_name(f"{file.name}.{os.getpid()}.partial"))


def write_image(file: Path, image: np.ndarray, partial: Path | None = None) -> None:
    """Write an image (height, width, 3), uint8, in the format of the file's name; it is there whole or not at all."""
    encoded = io.BytesIO()
    Image.fromarray(image).save(encoded, image_format(file))
    write_whole(file, encoded.getvalue(), partial)


def image_format(file: Path) -> str:
    """Pillow's name of the format that a file's name stands for.

    Raises:
        ValueError: there is none that can be written.
    """
    found = Image.registered_extensions().get(file.suffix.lower())
    if found is None or found not in Image.SAVE:
        raise ValueError(f"{file}: no image format is called {file.suffix!r}; use .png")
    return found


def data_uri(png: bytes) -> str:
    """A PNG as the address of an image in a page that needs no other file."""
    return "data:image/png;base64," + base64.b64encode(png).decode()
