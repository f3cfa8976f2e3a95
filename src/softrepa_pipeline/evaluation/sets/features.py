"""What sets of images are compared by: DINOv2's and CLIP's image embeddings."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from tqdm import tqdm
from transformers import Dinov2Model

from softrepa_pipeline.evaluation.scorers.base import ScorerConfig
from softrepa_pipeline.evaluation.scorers.clip import Clip
from softrepa_pipeline.evaluation.scorers.weights import Source, loading, source_of

DINOV2 = Source("facebook/dinov2-large", "47b73eefe95e8d44ec3623f8890bd894b6ea2d6c")
CLIP_L_336 = Source("openai/clip-vit-large-patch14-336", "ce19dc912ca5cd21c8a653c79e251e808ccabcd1")
_SIDE = 224
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class FeatureExtractor(ABC):
    """Turns images into feature vectors; `model` says which weights do it."""

    def __init__(self, config: ScorerConfig, model: str) -> None:
        self.device, self.batch_size, self.model = config.device, config.batch_size, model

    def features(self, images: Sequence[Image.Image]) -> Float[np.ndarray, "images width"]:
        starts = tqdm(range(0, len(images), self.batch_size), desc="features", mininterval=2, leave=False)
        with torch.inference_mode():
            parts = [
                self.batch([image.convert("RGB") for image in images[start : start + self.batch_size]])
                for start in starts
            ]
        return torch.cat(parts).double().cpu().numpy()

    @abstractmethod
    def batch(self, images: list[Image.Image]) -> Float[Tensor, "images width"]:
        """The features of one batch of RGB images."""


class DinoV2(FeatureExtractor):
    """DINOv2's normalised class token of images squeezed to 224 pixels, as FD-DINOv2 takes it."""

    def __init__(self, config: ScorerConfig) -> None:
        source = source_of(config, DINOV2)
        super().__init__(config, str(source))
        with loading(source):
            model = Dinov2Model.from_pretrained(source.model, dtype=torch.float32, **source.options)
        self.dino = model.requires_grad_(False).eval().to(config.device)

    def batch(self, images: list[Image.Image]) -> Float[Tensor, "images width"]:
        squares = [np.asarray(image.resize((_SIDE, _SIDE), Image.Resampling.BICUBIC)) for image in images]
        pixels = (torch.from_numpy(np.stack(squares)) / 255 - torch.tensor(_MEAN)) / torch.tensor(_STD)
        return self.dino(pixel_values=pixels.permute(0, 3, 1, 2).to(self.device)).pooler_output


class ClipImages(FeatureExtractor):
    """CLIP's image embeddings of unit length, as CMMD takes them."""

    def __init__(self, config: ScorerConfig) -> None:
        source = source_of(config, CLIP_L_336)
        super().__init__(config, str(source))
        self.clip = Clip(source, config.device)

    def batch(self, images: list[Image.Image]) -> Float[Tensor, "images width"]:
        return self.clip.images(images)
