"""CLIP embeddings of images and captions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from transformers import CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

_BATCH = 128


class ClipEncoder:
    """A frozen CLIP with its tokenizer, from a local folder or a hub id; embeddings have unit length.

    Raises:
        FileNotFoundError: `model` looks like a folder and is not there.
    """

    def __init__(self, model: str, device: str = "cpu") -> None:
        if (Path(model).is_absolute() or model.startswith(".")) and not Path(model).is_dir():
            raise FileNotFoundError(f"no CLIP folder at {model}; set clip.model to a CLIP folder or a hub id")
        self.device = device
        # Stored half precision would stay half by default: ten times slower on a CPU, and less exact.
        self.model = CLIPModel.from_pretrained(model, dtype=torch.float32).requires_grad_(False).eval().to(device)
        self.tokenizer = CLIPTokenizer.from_pretrained(model)
        self.processor = CLIPImageProcessorPil.from_pretrained(model)

    @torch.no_grad()
    def images(self, images: list[Image.Image]) -> np.ndarray:
        """Embeddings (images, width), float32, of RGB images."""
        pixels = self.processor(images=images, return_tensors="pt").pixel_values.to(self.device)
        return _unit(self.model.get_image_features(pixel_values=pixels).pooler_output)

    def captions(self, captions: list[str]) -> np.ndarray:
        """Embeddings (captions, width), float32."""
        starts = range(0, len(captions), _BATCH)
        parts = [self._caption_batch(captions[start : start + _BATCH]) for start in starts]
        return np.concatenate(parts)

    def similarity(self, captions: list[str], images: list[Image.Image]) -> np.ndarray:
        """Cosine similarity of each caption with the image at its place, (images,)."""
        starts = range(0, len(images), _BATCH)
        embedded = np.concatenate([self.images(images[start : start + _BATCH]) for start in starts])
        return (embedded * self.captions(captions)).sum(axis=1)

    @torch.no_grad()
    def _caption_batch(self, captions: list[str]) -> np.ndarray:
        tokens = self.tokenizer(
            captions,
            padding="max_length",
            max_length=self.model.config.text_config.max_position_embeddings,
            truncation=True,
            return_tensors="pt",
        ).to(self.device)
        return _unit(self.model.get_text_features(input_ids=tokens.input_ids).pooler_output)


def _unit(features: Tensor) -> np.ndarray:
    return F.normalize(features.float(), dim=-1).cpu().numpy()
