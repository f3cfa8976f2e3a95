"""ImageReward: BLIP reads prompt and image together, a head makes a number of it; read into transformers' BLIP."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from transformers import (
    BertTokenizer,
    BlipTextConfig,
    BlipTextModel,
    BlipVisionConfig,
    BlipVisionModel,
    CLIPImageProcessorPil,
)

from softrepa_pipeline.evaluation.scorers.base import Scorer, ScorerConfig
from softrepa_pipeline.evaluation.scorers.head import RewardHead
from softrepa_pipeline.evaluation.scorers.weights import Source, loading, read_tensors, source_of

IMAGE_REWARD = Source("THUDM/ImageReward", "9fabc279a94f082f9eb130070cac021569dd16dc")
BERT = Source("google-bert/bert-base-uncased", "86b5e0934494bd15c9632b12f734a8a67f723594")
CHECKPOINT, TEXT_CONFIG = "ImageReward.pt", "med_config.json"

# Mean and deviation of raw rewards over the authors' data.
REWARD_MEAN, REWARD_STD = 0.16717362830052426, 1.0333394966054072
MAX_TEXT_LENGTH = 35
_HEAD_WIDTH = 64  # of BLIP's vision transformers, base and large

_VISION_NAMES = {
    "cls_token": "embeddings.class_embedding",
    "pos_embed": "embeddings.position_embedding",
    "patch_embed.proj": "embeddings.patch_embedding",
    "norm": "post_layernorm",
}
_BLOCK_NAMES = {
    "norm1": "layer_norm1",
    "norm2": "layer_norm2",
    "attn.qkv": "self_attn.qkv",
    "attn.proj": "self_attn.projection",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}


class ImageReward(Scorer):
    """ImageReward-v1.0, normalised by its authors' mean and deviation (published tables show it times 100)."""

    scale = 100.0

    def __init__(self, config: ScorerConfig) -> None:
        source = source_of(config, IMAGE_REWARD)
        super().__init__(config, str(source))
        tokenizer = source.companion("tokenizer_config.json", BERT)
        with loading(source):
            state = read_tensors(source.file(CHECKPOINT))
            text_settings = json.loads(source.file(TEXT_CONFIG).read_text())
        with loading(tokenizer):
            self.tokenizer = BertTokenizer.from_pretrained(tokenizer.model, **tokenizer.options)
        vision, text, head = build(state, text_settings)
        self.vision, self.text, self.head = (module.eval().to(config.device) for module in (vision, text, head))
        side = vision.config.image_size
        # CLIP's mean and deviation, bicubic, centre crop: what the processor does unless told otherwise.
        self.processor = CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size={"height": side, "width": side})

    def score_batch(self, prompts: Sequence[str], images: list[Image.Image]) -> np.ndarray:
        tokens = self.tokenizer(
            list(prompts), padding="max_length", truncation=True, max_length=MAX_TEXT_LENGTH, return_tensors="pt"
        ).to(self.device)
        pixels = self.processor(images=images, return_tensors="pt").pixel_values.to(self.device)
        seen = self.vision(pixel_values=pixels).last_hidden_state
        read = self.text(
            input_ids=tokens.input_ids,
            attention_mask=tokens.attention_mask,
            encoder_hidden_states=seen,
            encoder_attention_mask=torch.ones(seen.shape[:2], dtype=torch.long, device=self.device),
        ).last_hidden_state[:, 0]
        return ((self.head(read).squeeze(-1) - REWARD_MEAN) / REWARD_STD).double().cpu().numpy()


def build(
    state: Mapping[str, Tensor], text_settings: Mapping[str, object]
) -> tuple[BlipVisionModel, BlipTextModel, nn.Module]:
    """The three parts of an ImageReward checkpoint; the vision transformer's sizes are read off its tensors.

    Raises:
        RuntimeError: a tensor is missing or has another shape than it should.
    """
    parts = {name: _under(state, prefix) for name, prefix in _PREFIXES.items()}
    vision = BlipVisionModel(_vision_config(parts["vision"]))
    vision.load_state_dict({_vision_name(name): tensor for name, tensor in parts["vision"].items()})
    known = {name: text_settings[name] for name in BlipTextConfig().to_dict() if name in text_settings}
    # `is_decoder` gives BLIP's text model its cross-attention; called without it, its own attention is not causal.
    settings = {**known, "encoder_hidden_size": vision.config.hidden_size, "is_decoder": True}
    text = BlipTextModel(BlipTextConfig(**settings), add_pooling_layer=False)
    parts["text"].pop("embeddings.position_ids", None)  # a constant that older checkpoints carry
    text.load_state_dict(parts["text"])
    head = RewardHead(text.config.hidden_size)
    head.load_state_dict(parts["head"])
    return vision.float(), text.float(), head.float()


_PREFIXES = {"vision": "blip.visual_encoder.", "text": "blip.text_encoder.", "head": "mlp."}


def _under(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}


def _vision_config(state: Mapping[str, Tensor]) -> BlipVisionConfig:
    width, _, patch, _ = state["patch_embed.proj.weight"].shape
    num_patches = state["pos_embed"].shape[1] - 1
    depth = 1 + max(int(name.split(".")[1]) for name in state if name.startswith("blocks."))
    return BlipVisionConfig(
        hidden_size=width,
        intermediate_size=state["blocks.0.mlp.fc1.weight"].shape[0],
        num_hidden_layers=depth,
        num_attention_heads=max(width // _HEAD_WIDTH, 1),
        patch_size=patch,
        image_size=patch * round(num_patches**0.5),
        layer_norm_eps=1e-6,  # BLIP's own; transformers' default is 1e-5
    )


def _vision_name(name: str) -> str:
    if name in _VISION_NAMES:
        return _VISION_NAMES[name]
    stem, _, kind = name.rpartition(".")
    if stem in _VISION_NAMES:
        return f"{_VISION_NAMES[stem]}.{kind}"
    _, number, inner = stem.split(".", 2)
    return f"encoder.layers.{number}.{_BLOCK_NAMES[inner]}.{kind}"
