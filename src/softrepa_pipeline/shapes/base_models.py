"""From nothing to the embedded models: draws their data, trains them in order, writes the folders that users load."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, StableDiffusion3Pipeline
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.launcher.api import LaunchConfig, elastic_launch
from transformers import CLIPImageProcessorPil, CLIPTokenizer

from softrepa_pipeline.shapes.pretraining import (
    LoopSettings,
    Pool,
    draw_pool,
    encode,
    tokenize,
    train_autoencoder,
    train_clip,
    train_sd3,
)
from softrepa_pipeline.shapes.scene import IMAGE_SIZE
from softrepa_pipeline.shapes.tiny_models import (
    build_autoencoder,
    build_clip,
    build_sd3_transformer,
    build_text_encoder,
    build_tokenizer,
)


@dataclass(frozen=True)
class PretrainConfig:
    """How the embedded models are trained.

    A `fault_share` of the denoiser's captions is wrong or incomplete in one attribute, count or relation, as captions
    from the web are; the autoencoder and CLIP see clean data. `denoiser.images` counts one process's share.
    """

    pool_images: int
    fault_share: float
    autoencoder_pool_images: int
    clip_pool_images: int
    autoencoder: LoopSettings
    clip: LoopSettings
    denoiser: LoopSettings
    num_processes: int


def pretrain(config: PretrainConfig, work: Path, output: Path) -> dict[str, Any]:
    """Train autoencoder, CLIP and SD3-shaped denoiser, resuming in `work`; write `output/sd3` and `output/clip`."""
    torch.set_num_threads(1)
    pool = _cached_pool(work / "pool.safetensors", config.pool_images, config.fault_share, seed=2)
    tokenizer = build_tokenizer(sorted(set(pool.captions)))
    autoencoder = _pretrain_autoencoder(config, work)
    _pretrain_clip(config, tokenizer, work, output / "clip")
    save_file({"latents": encode(autoencoder, pool.images).half()}, work / "latents.safetensors")
    save_file({"tokens": tokenize(tokenizer, pool.captions)}, work / "tokens.safetensors")
    tokenizer.save_pretrained(work / "tokenizer")
    launch = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=config.num_processes,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
    )
    elastic_launch(launch, _denoiser_process)(config, str(work))
    modules = _denoiser_modules(tokenizer)
    modules.load_state_dict(load_file(work / "denoiser.safetensors"))
    write_sd3_folder(modules, autoencoder, tokenizer, output / "sd3")
    return {"sd3": str(output / "sd3"), "clip": str(output / "clip")}


def _cached_pool(path: Path, num_images: int, fault_share: float, seed: int) -> Pool:
    captions_file = path.with_suffix(".txt")
    if not captions_file.is_file():
        pool = draw_pool(num_images, fault_share, seed)
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({"images": pool.images}, path)
        captions_file.write_text("\n".join(pool.captions))
    return Pool(load_file(path)["images"], captions_file.read_text().split("\n"))


def _pretrain_autoencoder(config: PretrainConfig, work: Path) -> AutoencoderKL:
    images = _cached_pool(work / "pool_autoencoder.safetensors", config.autoencoder_pool_images, 0.0, seed=1).images
    torch.manual_seed(config.autoencoder.seed)
    autoencoder = build_autoencoder().to(memory_format=torch.channels_last)
    return train_autoencoder(autoencoder, images, config.autoencoder, work / "autoencoder.pt")


def _pretrain_clip(config: PretrainConfig, tokenizer: CLIPTokenizer, work: Path, output: Path) -> None:
    pool = _cached_pool(work / "pool_clip.safetensors", config.clip_pool_images, 0.0, seed=3)
    torch.manual_seed(config.clip.seed)
    clip = train_clip(build_clip(tokenizer), tokenizer, pool, config.clip, work / "clip.pt")
    clip.half().save_pretrained(output)
    tokenizer.save_pretrained(output)
    processor = CLIPImageProcessorPil(
        image_mean=[0.5] * 3, image_std=[0.5] * 3, size={"shortest_edge": IMAGE_SIZE}, crop_size=IMAGE_SIZE
    )
    processor.save_pretrained(output)


def _denoiser_modules(tokenizer: CLIPTokenizer) -> nn.ModuleDict:
    return nn.ModuleDict(
        {
            "transformer": build_sd3_transformer(),
            "text_encoder": build_text_encoder(tokenizer),
            "text_encoder_2": build_text_encoder(tokenizer),
        }
    )


def _denoiser_process(config: PretrainConfig, work_folder: str) -> None:
    """One process a core; gradients are averaged. Runs in a fresh interpreter."""
    work = Path(work_folder)
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")
    tokenizer = CLIPTokenizer.from_pretrained(work / "tokenizer")
    torch.manual_seed(config.denoiser.seed)
    modules = _denoiser_modules(tokenizer)
    latents: Tensor = load_file(work / "latents.safetensors")["latents"]
    tokens: Tensor = load_file(work / "tokens.safetensors")["tokens"]
    train_sd3(modules, latents, tokens, tokenize(tokenizer, [""])[0], config.denoiser, work / "denoiser.pt")
    if int(os.environ["RANK"]) == 0:
        save_file(modules.state_dict(), work / "denoiser.safetensors")
    torch.distributed.destroy_process_group()


def write_sd3_folder(
    modules: nn.ModuleDict, autoencoder: AutoencoderKL, tokenizer: CLIPTokenizer, folder: Path
) -> None:
    """Write a folder that `StableDiffusion3Pipeline.from_pretrained` opens, in half precision and without T5."""
    pipeline = StableDiffusion3Pipeline(
        transformer=modules["transformer"],
        scheduler=FlowMatchEulerDiscreteScheduler(shift=1.0),
        vae=autoencoder,
        text_encoder=modules["text_encoder"],
        tokenizer=tokenizer,
        text_encoder_2=modules["text_encoder_2"],
        tokenizer_2=tokenizer,
        text_encoder_3=None,
        tokenizer_3=None,
    )
    pipeline.to(torch.float16).save_pretrained(folder)
