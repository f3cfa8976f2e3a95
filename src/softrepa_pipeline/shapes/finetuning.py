"""Briefly fine-tuned copies of an embedded base: as a whole, by a LoRA, or by preference (Diffusion-DPO)."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import DiffusionPipeline
from torch import Tensor, nn

from softrepa_pipeline.randomness import derived_seed, numpy_generator
from softrepa_pipeline.shapes.base_models import read_folder, write_folder
from softrepa_pipeline.shapes.captions import CaptionedScene, draw_captioned, draw_scene, neglect
from softrepa_pipeline.shapes.denoisers import FAMILIES, Family, denoising_loss, draw_noise
from softrepa_pipeline.shapes.pretraining import LoopSettings, encode, run_loop, step_generator, tokenize
from softrepa_pipeline.shapes.renderers import RENDERERS
from softrepa_pipeline.shapes.scene import BACKGROUNDS, Scene, split_of

LORA_FOLDER = "lora"
KINDS = ("full", "lora", "dpo")
_CHECKPOINT_STEPS = 50
_LORA_TARGETS = ["to_q", "to_k", "to_v", "to_out.0"]


@dataclass(frozen=True)
class FineTuning:
    """What a copy goes on with: `pool_images` that a `renderer` draws, on one `background` or all, captioned truly.

    `full` trains denoiser and text encoders, `lora` matrices of a `rank` in the denoiser's attention. `dpo` trains the
    denoiser to prefer the true image to one with a fault (`captions.neglect`); `beta` holds it to the base.
    """

    kind: str
    renderer: str = "plain"
    background: str | None = None
    rank: int = 4
    beta: float = 2000.0
    learning_rate: float = 3e-4
    images: int = 14400
    batch_size: int = 48
    pool_images: int = 4096
    seed: int = 0

    def __post_init__(self) -> None:
        for name, known in (("kind", KINDS), ("renderer", RENDERERS), ("background", (None, *BACKGROUNDS))):
            if getattr(self, name) not in known:
                named = ", ".join(str(own) for own in known)
                raise ValueError(f"base.{name} must be one of {named}, not {getattr(self, name)!r}")

    @property
    def loop(self) -> LoopSettings:
        return LoopSettings(
            images=self.images,
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            decay_share=0.5,
            seed=self.seed,
            checkpoint_steps=_CHECKPOINT_STEPS,
        )


def fine_tune(family: str, base: Path, tuning: FineTuning, folder: Path) -> None:
    """Write a fine-tuned copy of a base's folder, unless it is there; goes on where it was stopped.

    A LoRA is in the copy's weights, and beside them in LORA_FOLDER, as diffusers saves it.
    """
    if folder.is_dir():
        return
    work = folder.with_name(f"{folder.name}.partial")
    pipeline = read_folder(family, str(base))
    _train(FAMILIES[family], pipeline, tuning, work / "state.pt")
    copy = work / "copy"
    shutil.rmtree(copy, ignore_errors=True)
    if tuning.kind == "lora":
        _save_lora(FAMILIES[family], pipeline, copy / LORA_FOLDER)
        pipeline = read_folder(family, str(base))
        pipeline.load_lora_weights(copy / LORA_FOLDER)
        pipeline.fuse_lora()
        pipeline.unload_lora_weights()
    write_folder(family, FAMILIES[family].modules(pipeline), pipeline.vae, pipeline.tokenizer, copy)
    copy.rename(folder)
    shutil.rmtree(work)


def _train(family: Family, pipeline: DiffusionPipeline, tuning: FineTuning, state_file: Path) -> None:
    modules = family.modules(pipeline)
    if tuning.kind == "dpo":
        items, worse = _draw_preferences(tuning)
        modules.requires_grad_(False)[family.denoiser].requires_grad_(True)
        better = _latents(pipeline, [item.scene for item in items], tuning)
        tokens = _tokens(pipeline, items)
        loss = _preference_loss(family, modules, better, _latents(pipeline, worse, tuning), tokens, tuning)
    else:
        items = _draw(tuning)
        if tuning.kind == "lora":
            _add_lora(modules.requires_grad_(False)[family.denoiser], tuning)
        null_tokens = tokenize(pipeline.tokenizer, [""])[0]
        latent = _latents(pipeline, [item.scene for item in items], tuning)
        loss = denoising_loss(family, modules, latent, _tokens(pipeline, items), null_tokens, tuning.loop)
    run_loop(modules, loss, tuning.loop, state_file, f"fine-tuning ({tuning.kind})")


def _draw(tuning: FineTuning) -> list[CaptionedScene]:
    rng = numpy_generator(tuning.seed, "fine-tuning")
    items: list[CaptionedScene] = []
    while len(items) < tuning.pool_images:
        item = draw_captioned("train", 0.0, rng)
        if tuning.background in (None, item.scene.background):
            items.append(item)
    return items


def _draw_preferences(tuning: FineTuning) -> tuple[list[CaptionedScene], list[Scene]]:
    """Captioned scenes, and for each one that its caption claims too much of."""
    rng = numpy_generator(tuning.seed, "preferences")
    items: list[CaptionedScene] = []
    worse: list[Scene] = []
    while len(items) < tuning.pool_images:
        item = draw_captioned("train", 0.0, rng)
        fault = neglect(item.claim, rng)
        if fault == item.claim or tuning.background not in (None, item.scene.background):
            continue
        try:
            scene = draw_scene(fault, rng)
        except ValueError:  # two large objects that do not fit
            continue
        if split_of(scene.combination) == "train":
            items.append(item)
            worse.append(scene)
    return items, worse


def _latents(pipeline: DiffusionPipeline, scenes: list[Scene], tuning: FineTuning) -> Tensor:
    """(scenes, 16, 8, 8)."""
    images = np.stack([RENDERERS[tuning.renderer](scene) for scene in scenes])
    return encode(pipeline.vae, torch.from_numpy(images).permute(0, 3, 1, 2))


def _tokens(pipeline: DiffusionPipeline, items: list[CaptionedScene]) -> Tensor:
    return tokenize(pipeline.tokenizer, [item.caption for item in items])


def _preference_loss(
    family: Family, modules: nn.ModuleDict, better: Tensor, worse: Tensor, tokens: Tensor, tuning: FineTuning
) -> Callable[[int], Tensor]:
    """Diffusion-DPO (arXiv 2311.12908, eq. 14): −log σ(−β/2 (change of the better's error − change of the worse's)).

    Changes are from the base's errors, on the same noise; β/2 is T ω β there, as in its public code.
    """
    denoiser = modules[family.denoiser]
    reference = deepcopy(denoiser).requires_grad_(False)

    def loss_of_step(step: int) -> Tensor:
        generator = step_generator(tuning.seed, step)
        rows = torch.randint(len(tokens), (tuning.batch_size,), generator=generator)
        noise, share = draw_noise(family, better[rows], generator)
        text = family.encode(modules, tokens[rows], torch.zeros(len(rows), dtype=torch.bool))

        def change(clean: Tensor) -> Tensor:
            noised = family.noise(clean, noise, share)
            own, before = (
                (family.predict(model, noised.sample, noised.timestep, text) - noised.target).square().mean((1, 2, 3))
                for model in (denoiser, reference)
            )
            return own - before

        return -F.logsigmoid(-tuning.beta / 2 * (change(better[rows]) - change(worse[rows]))).mean()

    return loss_of_step


def _add_lora(denoiser: nn.Module, tuning: FineTuning) -> None:
    from peft import LoraConfig  # of the development environment: nothing else needs it

    torch.manual_seed(derived_seed(tuning.seed, "lora"))
    config = LoraConfig(
        r=tuning.rank, lora_alpha=tuning.rank, init_lora_weights="gaussian", target_modules=_LORA_TARGETS
    )
    denoiser.add_adapter(config)  # type: ignore[operator] # diffusers' models have it


def _save_lora(family: Family, pipeline: DiffusionPipeline, folder: Path) -> None:
    from peft import get_peft_model_state_dict

    states = get_peft_model_state_dict(getattr(pipeline, family.denoiser))
    pipeline.save_lora_weights(folder, **{f"{family.denoiser}_lora_layers": states})
