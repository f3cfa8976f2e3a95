"""Architectures of the embedded models: stock diffusers and transformers classes, small enough for a repository."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from diffusers import AutoencoderKL, SD3Transformer2DModel, UNet2DConditionModel
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionConfig,
)

from softrepa_pipeline.shapes.scene import IMAGE_SIZE

MAX_TEXT_LENGTH = 20
LATENT_CHANNELS = 16
LATENT_SIZE = IMAGE_SIZE // 4
_START, _END = "<|startoftext|>", "<|endoftext|>"


def build_tokenizer(captions: Iterable[str]) -> CLIPTokenizer:
    """Learn a CLIP-style byte-pair vocabulary in which every word of the embedded world is one token."""
    captions = sorted(set(captions))
    # The trainer numbers word ends in random order, and ties follow the numbers: named first, they are always the same.
    endings = sorted({f"{word[-1]}</w>" for caption in captions for word in caption.split()})
    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>", unk_token=_END))
    bpe.normalizer = normalizers.Lowercase()
    bpe.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.BpeTrainer(
        vocab_size=512, special_tokens=[_START, _END, *endings], end_of_word_suffix="</w>", show_progress=False
    )
    bpe.train_from_iterator(captions, trainer)
    state = json.loads(bpe.to_str())["model"]
    return CLIPTokenizer(
        vocab=state["vocab"], merges=[tuple(pair) for pair in state["merges"]], model_max_length=MAX_TEXT_LENGTH
    )


def _text_config(tokenizer: CLIPTokenizer, width: int, layers: int, projection: int) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=width // 32,
        max_position_embeddings=MAX_TEXT_LENGTH,
        projection_dim=projection,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def build_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModelWithProjection:
    """One of SD3's two CLIP text encoders: (20, 64) states; the pooled (64,) projection is zero and stays so.

    What the text says reaches so small a denoiser through attention alone, where soft tokens enter too.
    """
    encoder = CLIPTextModelWithProjection(_text_config(tokenizer, 64, 3, 64))
    encoder.text_projection.requires_grad_(False).weight.zero_()
    return encoder


def text_tower(model: CLIPModel | CLIPTextModelWithProjection) -> CLIPTextModel:
    """The text encoder alone, without projection, as SD1.5's and SDXL's first encoder are."""
    config = model.config.text_config if isinstance(model, CLIPModel) else model.config
    tower = CLIPTextModel(config)
    prefix = "text_model."
    states = {name: value for name, value in model.state_dict().items() if name.startswith(prefix)}
    tower.load_state_dict({name.removeprefix(prefix): value for name, value in states.items()})
    return tower


def build_clip(tokenizer: CLIPTokenizer) -> CLIPModel:
    """The CLIP of the mining stage: 32-pixel images in 4-pixel patches, 128-dimensional embeddings."""
    vision = CLIPVisionConfig(
        hidden_size=96,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=3,
        image_size=IMAGE_SIZE,
        patch_size=4,
        projection_dim=128,
    )
    text = _text_config(tokenizer, 96, 3, 128)
    return CLIPModel(CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=128))


def build_sd3_transformer() -> SD3Transformer2DModel:
    """An SD3-shaped denoiser: 6 joint blocks of width 128 over 16 image and 20 text tokens."""
    return SD3Transformer2DModel(
        sample_size=LATENT_SIZE,
        patch_size=2,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        num_layers=6,
        attention_head_dim=32,
        num_attention_heads=4,
        joint_attention_dim=128,
        caption_projection_dim=128,
        pooled_projection_dim=128,
        pos_embed_max_size=LATENT_SIZE,
        qk_norm="rms_norm",
    )


def _build_unet(**differences: Any) -> UNet2DConditionModel:
    """Two levels with attention over 8 × 8 latents: 2 down, 1 mid and 4 up attentions."""
    return UNet2DConditionModel(
        sample_size=LATENT_SIZE,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D",) * 2,
        up_block_types=("CrossAttnUpBlock2D",) * 2,
        attention_head_dim=4,
        norm_num_groups=16,
        **differences,
    )


def build_sd15_unet() -> UNet2DConditionModel:
    """An SD1.5-shaped denoiser: widths 64 and 128, text 96 wide."""
    return _build_unet(block_out_channels=(64, 128), cross_attention_dim=96)


def build_sdxl_unet() -> UNet2DConditionModel:
    """An SDXL-shaped denoiser: transformers of depth 1 and 2, text 128 wide, pooled text and image sizes added."""
    return _build_unet(
        block_out_channels=(64, 112),
        transformer_layers_per_block=(1, 2),
        cross_attention_dim=128,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=16,
        projection_class_embeddings_input_dim=64 + 6 * 16,
    )


def build_autoencoder() -> AutoencoderKL:
    """A 4× down-sampling autoencoder: (3, 32, 32) images, (16, 8, 8) latents."""
    return AutoencoderKL(
        block_out_channels=(16, 32, 64),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=8,
        sample_size=IMAGE_SIZE,
        mid_block_add_attention=False,
        use_quant_conv=False,
        use_post_quant_conv=False,
        shift_factor=0.0,
    )
