"""HPSv2.1: the cosine of a CLIP-H trained on people's choices, read from its open_clip checkpoint into transformers."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import CLIPConfig, CLIPModel

from softrepa_pipeline.evaluation.scorers.base import Scorer, ScorerConfig
from softrepa_pipeline.evaluation.scorers.clip import CLIP_H, Clip
from softrepa_pipeline.evaluation.scorers.weights import Source, loading, read_tensors, source_of

HPS = Source("xswu/HPSv2", "697403c78157020a1ae59d23f111aa58ced35b0a")
CHECKPOINT = "HPS_v2.1_compressed.pt"

_NAMES = {
    "logit_scale": "logit_scale",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "ln_final": "text_model.final_layer_norm",
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.ln_pre": "vision_model.pre_layrnorm",  # transformers' own spelling
    "visual.ln_post": "vision_model.post_layernorm",
}
_BLOCK_NAMES = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
_BLOCK = re.compile(r"(visual\.)?transformer\.resblocks\.(\d+)\.(.+)")


class HpsV21(Scorer):
    """HPSv2.1: cos, times 1 (published tables show it times 100)."""

    scale = 100.0

    def __init__(self, config: ScorerConfig) -> None:
        source = source_of(config, HPS)
        super().__init__(config, str(source))
        base = source.companion("config.json", CLIP_H)
        with loading(source):
            state = from_open_clip(read_tensors(source.file(CHECKPOINT)))
        with loading(base):
            model = CLIPModel(CLIPConfig.from_pretrained(base.model, **base.options))
        model.load_state_dict(state)
        self.clip = Clip.of_model(model.float(), config.device, base)

    def score_batch(self, prompts: Sequence[str], images: list[Image.Image]) -> np.ndarray:
        pixels = preprocess(images, self.clip.model.config.vision_config.image_size, self.clip.processor)
        cosine = (self.clip.pixels(pixels) * self.clip.texts(prompts)).sum(dim=-1)
        return cosine.double().cpu().numpy()


def preprocess(images: list[Image.Image], side: int, normalisation: object) -> Tensor:
    """Pixels (images, 3, side, side): the longer side is fitted and the rest is black, as HPSv2 does; no crop."""
    squares = [np.asarray(letterbox(image, side), dtype=np.float32) / 255 for image in images]
    mean, std = (torch.tensor(getattr(normalisation, name)) for name in ("image_mean", "image_std"))
    return ((torch.from_numpy(np.stack(squares)) - mean) / std).permute(0, 3, 1, 2)


def letterbox(image: Image.Image, side: int) -> Image.Image:
    scale = side / max(image.size)
    width, height = (round(extent * scale) for extent in image.size)
    canvas = Image.new("RGB", (side, side))
    canvas.paste(image.resize((width, height), Image.Resampling.BICUBIC), ((side - width) // 2, (side - height) // 2))
    return canvas


def from_open_clip(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """An open_clip CLIP's state dict under the names of transformers' CLIPModel.

    Raises:
        ValueError: a tensor is none of an open_clip CLIP's.
    """
    renamed: dict[str, Tensor] = {}
    for name, tensor in state.items():
        block = _BLOCK.fullmatch(name)
        if block:
            tower = "vision_model" if block[1] else "text_model"
            renamed |= _block_tensors(f"{tower}.encoder.layers.{block[2]}.", block[3], tensor)
        elif name == "visual.proj":
            renamed["visual_projection.weight"] = tensor.T
        elif name == "text_projection":
            renamed["text_projection.weight"] = tensor.T
        else:
            renamed[_rename(name, _NAMES)] = tensor
    return renamed


def _block_tensors(prefix: str, name: str, tensor: Tensor) -> dict[str, Tensor]:
    if name.startswith("attn.in_proj_"):
        kind = name.removeprefix("attn.in_proj_")
        parts = zip("qkv", tensor.chunk(3), strict=True)
        return {f"{prefix}self_attn.{letter}_proj.{kind}": part for letter, part in parts}
    return {prefix + _rename(name, _BLOCK_NAMES): tensor}


def _rename(name: str, names: Mapping[str, str]) -> str:
    if name in names:
        return names[name]
    stem, _, kind = name.rpartition(".")
    if stem not in names:
        raise ValueError(f"{name} is no tensor of an open_clip CLIP")
    return f"{names[stem]}.{kind}"
