"""From nothing to the embedded models: draws their data, trains them in order, writes the folders that users load."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
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

    Of the denoiser's captions that can claim too much a `fault_share` does (`captions.neglect`), as captions from the
    web do; the autoencoder and CLIP see clean data. Each of `num_processes` draws its own `pool_images` and sees
    `denoiser.images` of them. With `start_from`, an SD3-shaped folder, only its denoiser and text encoders go on.
    """

    pool_images: int
    fault_share: float
    autoencoder_pool_images: int
    clip_pool_images: int
    autoencoder: LoopSettings
    clip: LoopSettings
    denoiser: LoopSettings
    num_processes: int
    start_from: str | None = None


def pretrain(config: PretrainConfig, work: Path, output: Path) -> dict[str, Any]:
    """Train autoencoder, CLIP and SD3-shaped denoiser, resuming in `work`; write `output/sd3` and `output/clip`."""
    torch.set_num_threads(1)
    if config.start_from is None:
        _start(config, work / "start", output / "clip", work)
        config = replace(config, start_from=str(work / "start"))
    launch = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=config.num_processes,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
    )
    elastic_launch(launch, _denoiser_process)(config, str(work))
    start = _load(config)
    modules = _denoiser_modules(start)
    modules.load_state_dict(load_file(work / "denoiser.safetensors"))
    write_sd3_folder(modules, start.vae, start.tokenizer, output / "sd3")
    return {"sd3": str(output / "sd3"), "clip": str(output / "clip")}


def _start(config: PretrainConfig, folder: Path, clip_folder: Path, work: Path) -> None:
    """Train what the denoiser needs, and write an SD3-shaped folder whose denoiser knows nothing yet."""
    if (folder / "model_index.json").is_file():
        return
    pool = _cached_pool(work / "pool_clip.safetensors", config.clip_pool_images, seed=3)
    tokenizer = build_tokenizer(pool.captions)
    autoencoder = _pretrain_autoencoder(config, work)
    _pretrain_clip(config, tokenizer, pool, work, clip_folder)
    torch.manual_seed(config.denoiser.seed)
    encoders = {name: build_text_encoder(tokenizer) for name in ("text_encoder", "text_encoder_2")}
    modules = nn.ModuleDict({"transformer": build_sd3_transformer(), **encoders})
    write_sd3_folder(modules, autoencoder, tokenizer, folder)


def _cached_pool(path: Path, num_images: int, seed: int) -> Pool:
    captions_file = path.with_suffix(".txt")
    if not captions_file.is_file():
        pool = draw_pool(num_images, 0.0, seed)
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({"images": pool.images}, path)
        captions_file.write_text("\n".join(pool.captions))
    return Pool(load_file(path)["images"], captions_file.read_text().split("\n"))


def _pretrain_autoencoder(config: PretrainConfig, work: Path) -> AutoencoderKL:
    images = _cached_pool(work / "pool_autoencoder.safetensors", config.autoencoder_pool_images, seed=1).images
    torch.manual_seed(config.autoencoder.seed)
    autoencoder = build_autoencoder().to(memory_format=torch.channels_last)
    return train_autoencoder(autoencoder, images, config.autoencoder, work / "autoencoder.pt")


def _pretrain_clip(config: PretrainConfig, tokenizer: CLIPTokenizer, pool: Pool, work: Path, output: Path) -> None:
    torch.manual_seed(config.clip.seed)
    clip = train_clip(build_clip(tokenizer), tokenizer, pool, config.clip, work / "clip.pt")
    clip.half().save_pretrained(output)
    tokenizer.save_pretrained(output)
    processor = CLIPImageProcessorPil(
        image_mean=[0.5] * 3, image_std=[0.5] * 3, size={"shortest_edge": IMAGE_SIZE}, crop_size=IMAGE_SIZE
    )
    processor.save_pretrained(output)


def _load(config: PretrainConfig) -> StableDiffusion3Pipeline:
    return StableDiffusion3Pipeline.from_pretrained(
        config.start_from, text_encoder_3=None, tokenizer_3=None, dtype=torch.float32, local_files_only=True
    )


def _denoiser_modules(pipeline: StableDiffusion3Pipeline) -> nn.ModuleDict:
    encoders = {"text_encoder": pipeline.text_encoder, "text_encoder_2": pipeline.text_encoder_2}
    for encoder in encoders.values():
        encoder.text_projection.requires_grad_(False).weight.zero_()
    return nn.ModuleDict({"transformer": pipeline.transformer, **encoders}).train()


def _denoiser_process(config: PretrainConfig, work_folder: str) -> None:
    """One process a core, each with its own images; gradients are averaged. Runs in a fresh interpreter."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")
    rank, work, start = int(os.environ["RANK"]), Path(work_folder), _load(config)
    pool = _encoded_pool(config, start, work / f"pool-{rank}.safetensors", seed=200 + rank)
    modules = _denoiser_modules(start)
    null_tokens = tokenize(start.tokenizer, [""])[0]
    train_sd3(modules, pool["latents"], pool["tokens"], null_tokens, config.denoiser, work / "denoiser.pt")
    if rank == 0:
        save_file(modules.state_dict(), work / "denoiser.safetensors")
    torch.distributed.destroy_process_group()


def _encoded_pool(
    config: PretrainConfig, pipeline: StableDiffusion3Pipeline, path: Path, seed: int
) -> dict[str, Tensor]:
    """Latents (images, 16, 8, 8) and token ids (images, 20) of a process's own images."""
    if not path.is_file():
        pool = draw_pool(config.pool_images, config.fault_share, seed)
        latents = encode(pipeline.vae, pool.images).half()
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        save_file({"latents": latents, "tokens": tokenize(pipeline.tokenizer, pool.captions)}, partial)
        partial.replace(path)
    return load_file(path)


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
    for component in (pipeline.transformer, pipeline.vae):
        component.register_to_config(_name_or_path="")  # else the folder that it came from
    pipeline.to(torch.float16).save_pretrained(folder)
