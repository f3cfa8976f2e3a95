"""From nothing to the embedded models: draws their data, trains them in order, writes the folders that users load."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DiffusionPipeline,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
)
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.launcher.api import LaunchConfig, elastic_launch
from transformers import CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

from softrepa_pipeline.shapes.denoisers import FAMILIES, VP_SCHEDULE, Teacher, denoising_loss, train_denoiser
from softrepa_pipeline.shapes.pretraining import (
    LoopSettings,
    Pool,
    draw_pool,
    encode,
    tokenize,
    train_autoencoder,
    train_clip,
)
from softrepa_pipeline.shapes.scene import IMAGE_SIZE
from softrepa_pipeline.shapes.tiny_models import (
    build_autoencoder,
    build_clip,
    build_sd3_transformer,
    build_sd15_unet,
    build_sdxl_unet,
    build_text_encoder,
    build_tokenizer,
    text_tower,
)


@dataclass(frozen=True)
class PretrainConfig:
    """How the embedded models are trained.

    Of the denoiser's captions that can claim too much a `fault_share` does (`captions.neglect`), as captions from the
    web do; the autoencoder and CLIP see clean data. Each of `num_processes` draws its own `pool_images` and sees
    `denoiser.images` of them. With `start_from`, a folder of the family, only its denoiser and text encoders go on.
    With `teacher`, an SD3-shaped folder, a UNet learns the teacher's predictions; without `start_from` it takes the
    teacher's autoencoder, tokenizer and, as SDXL, text encoders. SD1.5's is CLIP's text tower, from `clip_folder`.
    """

    family: str

    pool_images: int
    fault_share: float
    autoencoder_pool_images: int
    clip_pool_images: int
    autoencoder: LoopSettings
    clip: LoopSettings
    denoiser: LoopSettings
    num_processes: int
    start_from: str | None = None
    teacher: str | None = None
    clip_folder: str | None = None

    def __post_init__(self) -> None:
        if self.family not in FAMILIES:
            raise ValueError(f"pretrain.family must be one of {', '.join(FAMILIES)}, not {self.family!r}")
        if self.family == "sd3" or self.start_from is not None:
            return
        if self.teacher is None:
            raise ValueError(f"pretrain.family {self.family} needs pretrain.teacher, a trained SD3-shaped folder")
        if self.family == "sd15" and self.clip_folder is None:
            raise ValueError("pretrain.family sd15 needs pretrain.clip_folder, whose text tower it takes")


def pretrain(config: PretrainConfig, work: Path, output: Path) -> dict[str, Any]:
    """Train a family's denoiser, an SD3 after its autoencoder and CLIP; resumes in `work`, writes `output/<family>`."""
    torch.set_num_threads(1)
    written = {config.family: str(output / config.family)}
    if config.start_from is None:
        if config.family == "sd3":
            _start_from_nothing(config, work / "start", output / "clip", work)
            written["clip"] = str(output / "clip")
        else:
            _start_from_teacher(config, work / "start")
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
    start = read_folder(config.family, config.start_from)
    modules = FAMILIES[config.family].modules(start)
    modules.load_state_dict(load_file(work / "denoiser.safetensors"))
    write_folder(config.family, modules, start.vae, start.tokenizer, output / config.family)
    return written


def _start_from_nothing(config: PretrainConfig, folder: Path, clip_folder: Path, work: Path) -> None:
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
    write_folder("sd3", modules, autoencoder, tokenizer, folder)


def _start_from_teacher(config: PretrainConfig, folder: Path) -> None:
    """Write a folder whose UNet knows nothing yet, beside the teacher's autoencoder and text encoders."""
    if (folder / "model_index.json").is_file():
        return
    teacher = read_folder("sd3", config.teacher)
    torch.manual_seed(config.denoiser.seed)
    if config.family == "sd15":
        clip = CLIPModel.from_pretrained(config.clip_folder, dtype=torch.float32, local_files_only=True)
        modules = nn.ModuleDict({"unet": build_sd15_unet(), "text_encoder": text_tower(clip)})
    else:
        encoders = {"text_encoder": text_tower(teacher.text_encoder), "text_encoder_2": teacher.text_encoder_2}
        modules = nn.ModuleDict({"unet": build_sdxl_unet(), **encoders})
    # The UNets' stock pipelines know no shift of the latents.
    teacher.vae.register_to_config(shift_factor=None)
    write_folder(config.family, modules, teacher.vae, teacher.tokenizer, folder)


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


def read_folder(family: str, folder: str | None) -> DiffusionPipeline:
    """The family's stock pipeline of a folder, in single precision; an SD3 without T5."""
    absent = {"text_encoder_3": None, "tokenizer_3": None} if family == "sd3" else {}
    return FAMILIES[family].pipeline.from_pretrained(folder, dtype=torch.float32, local_files_only=True, **absent)


def _denoiser_process(config: PretrainConfig, work_folder: str) -> None:
    """One process a core, each with its own images; gradients are averaged. Runs in a fresh interpreter."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")
    family, rank, work = FAMILIES[config.family], int(os.environ["RANK"]), Path(work_folder)
    start = read_folder(config.family, config.start_from)
    pool = _encoded_pool(config, start, work / f"pool-{rank}.safetensors", seed=200 + rank)
    modules = family.modules(start)
    modules.to(memory_format=torch.channels_last)  # type: ignore[call-overload] # missing in torch's stubs
    null_tokens = tokenize(start.tokenizer, [""])[0]
    state_file, teacher, settings = work / "denoiser.pt", _teacher(config), config.denoiser
    data = (pool["latents"], pool["tokens"], null_tokens)
    train_denoiser(modules, denoising_loss(family, modules, *data, settings, teacher), settings, state_file)
    if rank == 0:
        save_file(
            {name: value.contiguous() for name, value in modules.state_dict().items()}, work / "denoiser.safetensors"
        )
    torch.distributed.destroy_process_group()


def _teacher(config: PretrainConfig) -> Teacher | None:
    if config.teacher is None:
        return None
    pipeline = read_folder("sd3", config.teacher)
    modules = FAMILIES["sd3"].modules(pipeline).eval().requires_grad_(False)
    return Teacher(modules, pipeline.vae.config.shift_factor * pipeline.vae.config.scaling_factor)


def _encoded_pool(config: PretrainConfig, pipeline: DiffusionPipeline, path: Path, seed: int) -> dict[str, Tensor]:
    """Latents (images, 16, 8, 8) and token ids (images, 20) of a process's own images."""
    if not path.is_file():
        pool = draw_pool(config.pool_images, config.fault_share, seed)
        latents = encode(pipeline.vae, pool.images).half()
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        save_file({"latents": latents, "tokens": tokenize(pipeline.tokenizer, pool.captions)}, partial)
        partial.replace(path)
    return load_file(path)


def write_folder(
    family: str, modules: nn.ModuleDict, autoencoder: AutoencoderKL, tokenizer: CLIPTokenizer, folder: Path
) -> None:
    """Write a folder that the family's stock pipeline opens, in half precision; an SD3 without T5."""
    parts: dict[str, Any] = {**modules, "vae": autoencoder, "tokenizer": tokenizer}
    if family == "sd15":
        scheduler = DDIMScheduler(**VP_SCHEDULE, prediction_type="v_prediction", clip_sample=False)
        parts |= {"scheduler": scheduler, "safety_checker": None, "feature_extractor": None}
        parts["requires_safety_checker"] = False
    elif family == "sdxl":
        scheduler = EulerDiscreteScheduler(**VP_SCHEDULE, prediction_type="v_prediction", timestep_spacing="leading")
        parts |= {"scheduler": scheduler, "tokenizer_2": tokenizer}
    else:
        parts |= {"scheduler": FlowMatchEulerDiscreteScheduler(shift=1.0), "tokenizer_2": tokenizer}
        parts |= {"text_encoder_3": None, "tokenizer_3": None}
    pipeline = FAMILIES[family].pipeline(**parts)
    for component in (getattr(pipeline, FAMILIES[family].denoiser), autoencoder):
        component.register_to_config(_name_or_path="")  # else the folder that it came from
    pipeline.to(torch.float16).save_pretrained(folder)
