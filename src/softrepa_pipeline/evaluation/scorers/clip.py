"""Scores from a CLIP's similarity of prompt and image: CLIPScore and PickScore."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from transformers import CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

from softrepa_pipeline.evaluation.scorers.base import Scorer, ScorerConfig
from softrepa_pipeline.evaluation.scorers.weights import Source, loading, source_of

CLIP_L = Source("openai/clip-vit-large-patch14", "32bd64288804d66eefd0ccbe215aa642df71cc41")
CLIP_H = Source("laion/CLIP-ViT-H-14-laion2B-s32B-b79K", "1c2b8495b28150b8a4922ee1c8edee224c284c0c")
PICK_SCORE = Source("yuvalkirstain/PickScore_v1", "a4e4367c6dfa7288a00c550414478f865b875800")


class Clip:
    """A frozen CLIP with its tokenizer and image processor; embeddings have unit length.

    Raises:
        MissingWeightsError: a part is not there.
    """

    def __init__(self, source: Source, device: str, processors: Source | None = None) -> None:
        with loading(source):
            # Stored half precision would stay half by default: slow on a CPU, and less exact.
            model = CLIPModel.from_pretrained(source.model, dtype=torch.float32, **source.options)
        self._hold(model, device, processors or source)

    @classmethod
    def of_model(cls, model: CLIPModel, device: str, processors: Source) -> Clip:
        """A CLIP whose weights were loaded elsewhere."""
        clip = cls.__new__(cls)
        clip._hold(model, device, processors)
        return clip

    def _hold(self, model: CLIPModel, device: str, processors: Source) -> None:
        self.device, self.model = device, model.requires_grad_(False).eval().to(device)
        with loading(processors):
            self.tokenizer = CLIPTokenizer.from_pretrained(processors.model, **processors.options)
            self.processor = CLIPImageProcessorPil.from_pretrained(processors.model, **processors.options)

    @property
    def logit_scale(self) -> float:
        return float(self.model.logit_scale.exp())

    def images(self, images: list[Image.Image]) -> Float[Tensor, "images width"]:
        return self.pixels(self.processor(images=images, return_tensors="pt").pixel_values)

    def pixels(self, pixels: Float[Tensor, "images 3 height width"]) -> Float[Tensor, "images width"]:
        """Embeddings of images that are already resized and normalised."""
        return F.normalize(self.model.get_image_features(pixel_values=pixels.to(self.device)).pooler_output, dim=-1)

    def texts(self, texts: Sequence[str]) -> Float[Tensor, "texts width"]:
        # What follows the end token changes nothing: attention is causal and the end token is what is read.
        length = self.model.config.text_config.max_position_embeddings
        tokens = self.tokenizer(
            list(texts), padding="max_length", max_length=length, truncation=True, return_tensors="pt"
        )
        features = self.model.get_text_features(input_ids=tokens.input_ids.to(self.device)).pooler_output
        return F.normalize(features, dim=-1)


class ClipScore(Scorer):
    """CLIPScore as torchmetrics scales it: 100 · max(cos, 0)."""

    def __init__(self, config: ScorerConfig) -> None:
        source = source_of(config, CLIP_L)
        super().__init__(config, str(source))
        self.clip = Clip(source, config.device)

    def score_batch(self, prompts: Sequence[str], images: list[Image.Image]) -> np.ndarray:
        cosine = (self.clip.images(images) * self.clip.texts(prompts)).sum(dim=-1)
        return 100 * cosine.clamp(min=0).double().cpu().numpy()


class PickScore(Scorer):
    """PickScore: the logit exp(logit_scale) · cos of a CLIP-H trained on people's choices."""

    def __init__(self, config: ScorerConfig) -> None:
        source = source_of(config, PICK_SCORE)
        super().__init__(config, str(source))
        self.clip = Clip(source, config.device, source.companion("preprocessor_config.json", CLIP_H))

    def score_batch(self, prompts: Sequence[str], images: list[Image.Image]) -> np.ndarray:
        cosine = (self.clip.images(images) * self.clip.texts(prompts)).sum(dim=-1)
        return self.clip.logit_scale * cosine.double().cpu().numpy()
