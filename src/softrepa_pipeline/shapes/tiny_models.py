"""Architectures of the embedded models: stock diffusers and transformers classes, small enough for a repository."""

from __future__ import annotations

import json
from collections.abc import Iterable

from diffusers import AutoencoderKL, SD3Transformer2DModel
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
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
