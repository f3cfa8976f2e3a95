"""Training of the embedded denoisers, one family at a time: how each is called, how it is noised, what it predicts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import (
    DDIMScheduler,
    DiffusionPipeline,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
)
from torch import Tensor, nn

from softrepa_pipeline.noising import mix_preserving_variance, mix_straight
from softrepa_pipeline.shapes.pretraining import LoopSettings, muon_and_adamw, run_loop, step_generator
from softrepa_pipeline.shapes.scene import IMAGE_SIZE

_NUM_TIMESTEPS = 1000

# The noise schedule of SD1.5 and SDXL.
VP_SCHEDULE: dict[str, Any] = {
    "num_train_timesteps": _NUM_TIMESTEPS,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
}


@dataclass(frozen=True)
class Text:
    """Text states (captions, length, width) and, where the family has them, pooled states (captions, width)."""

    states: Tensor
    pooled: Tensor | None


@dataclass(frozen=True)
class Noised:
    """x_t, the timestep, and what the denoiser should predict."""

    sample: Tensor
    timestep: Tensor
    target: Tensor


@dataclass(frozen=True)
class Family:
    """One architecture: its stock pipeline, its trained parts, and how they turn text and x_t into a prediction.

    `noise` takes (clean, noise, s) with s the share of noise in the straight mixture (1 − s) x_0 + s ε, so that all
    families train on the same signal-to-noise ratios, as far as their schedules reach (`noise_range`).
    """

    pipeline: type[DiffusionPipeline]
    denoiser: str
    encoders: tuple[str, ...]
    encode: Callable[[nn.ModuleDict, Tensor, Tensor], Text]
    predict: Callable[[nn.Module, Tensor, Tensor, Text], Tensor]
    noise: Callable[[Tensor, Tensor, Tensor], Noised]
    noise_range: tuple[float, float] = (0.0, 1.0)

    def modules(self, pipeline: DiffusionPipeline) -> nn.ModuleDict:
        """What is trained together; the pooled text stays zero."""
        for name in self.encoders:
            projection = getattr(getattr(pipeline, name), "text_projection", None)
            if projection is not None:
                projection.requires_grad_(False).weight.zero_()
        return nn.ModuleDict({name: getattr(pipeline, name) for name in (self.denoiser, *self.encoders)}).train()


def _side_by_side(modules: nn.ModuleDict, tokens: Tensor) -> tuple[Tensor, list[Any]]:
    """Penultimate states (B, 20, 128) of two CLIP encoders, as SDXL and SD3 take them, and the encoders' outputs."""
    outputs = [modules[name](tokens, output_hidden_states=True) for name in ("text_encoder", "text_encoder_2")]
    return torch.cat([output.hidden_states[-2] for output in outputs], dim=-1), outputs


def _sd3_text(modules: nn.ModuleDict, tokens: Tensor, dropped: Tensor) -> Text:
    states, outputs = _side_by_side(modules, tokens)
    return Text(states, torch.cat([output.text_embeds for output in outputs], dim=-1))


def _sdxl_text(modules: nn.ModuleDict, tokens: Tensor, dropped: Tensor) -> Text:
    """As SDXL's pipeline: zeros where the others encode an empty caption, and the second encoder's pooled text."""
    states, outputs = _side_by_side(modules, tokens)
    return Text(states * ~dropped[:, None, None], outputs[1].text_embeds)


def _sd15_text(modules: nn.ModuleDict, tokens: Tensor, dropped: Tensor) -> Text:
    return Text(modules["text_encoder"](tokens).last_hidden_state, None)


def _sd3_predict(denoiser: nn.Module, sample: Tensor, timestep: Tensor, text: Text) -> Tensor:
    return denoiser(
        hidden_states=sample, timestep=timestep, encoder_hidden_states=text.states, pooled_projections=text.pooled
    ).sample


def _sd15_predict(denoiser: nn.Module, sample: Tensor, timestep: Tensor, text: Text) -> Tensor:
    return denoiser(sample, timestep, text.states).sample


def _sdxl_predict(denoiser: nn.Module, sample: Tensor, timestep: Tensor, text: Text) -> Tensor:
    """Original size, crop and target size as the stock pipeline fills them in for this world's images."""
    sizes = torch.tensor([IMAGE_SIZE, IMAGE_SIZE, 0, 0, IMAGE_SIZE, IMAGE_SIZE]).expand(len(sample), -1)
    added = {"text_embeds": text.pooled, "time_ids": sizes}
    return denoiser(sample, timestep, text.states, added_cond_kwargs=added).sample


def _flow(clean: Tensor, noise: Tensor, share: Tensor) -> Noised:
    sample, target = mix_straight(clean, noise, share)
    return Noised(sample, share * _NUM_TIMESTEPS, target)


_SIGNAL = DDIMScheduler(**VP_SCHEDULE).alphas_cumprod
_NOISE_SHARE = (1 - _SIGNAL).sqrt() / (_SIGNAL.sqrt() + (1 - _SIGNAL).sqrt())
_VP_RANGE = (float(_NOISE_SHARE[0]), float(_NOISE_SHARE[-1]))


def _variance_preserving(clean: Tensor, noise: Tensor, share: Tensor) -> Noised:
    """As the UNets' schedule at the timestep whose noise share is s, with v as the target."""
    timestep = torch.searchsorted(_NOISE_SHARE, share).clamp(max=_NUM_TIMESTEPS - 1)
    sample, target = mix_preserving_variance(clean, noise, _SIGNAL[timestep], "v_prediction")
    return Noised(sample, timestep, target)


FAMILIES = {
    "sd15": Family(
        StableDiffusionPipeline,
        "unet",
        ("text_encoder",),
        _sd15_text,
        _sd15_predict,
        _variance_preserving,
        _VP_RANGE,
    ),
    "sdxl": Family(
        StableDiffusionXLPipeline,
        "unet",
        ("text_encoder", "text_encoder_2"),
        _sdxl_text,
        _sdxl_predict,
        _variance_preserving,
        _VP_RANGE,
    ),
    "sd3": Family(
        StableDiffusion3Pipeline, "transformer", ("text_encoder", "text_encoder_2"), _sd3_text, _sd3_predict, _flow
    ),
}


@dataclass(frozen=True)
class Teacher:
    """A trained SD3-shaped denoiser with its text encoders; its latents are ours less `offset`."""

    modules: nn.ModuleDict
    offset: float

    @torch.no_grad()
    def expect(self, clean: Tensor, noise: Tensor, share: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """What it expects of (x_0, ε), given their mixture (1 − s) x_0 + s ε and the caption."""
        noised = _flow(clean - self.offset, noise, share)
        text = _sd3_text(self.modules, tokens, torch.zeros(len(tokens), dtype=torch.bool))
        velocity = _sd3_predict(self.modules["transformer"], noised.sample, noised.timestep, text)
        level = share[:, None, None, None]
        return noised.sample - level * velocity + self.offset, noised.sample + (1 - level) * velocity


def denoising_loss(
    family: Family,
    modules: nn.ModuleDict,
    latents: Tensor,
    tokens: Tensor,
    null_tokens: Tensor,
    settings: LoopSettings,
    teacher: Teacher | None = None,
) -> Callable[[int], Tensor]:
    """The loss of a step: the family's own prediction target, for images and captions drawn by the step's number.

    A tenth of the captions is dropped for guidance; the share of noise is logit-normal with its mass towards noise,
    where the image's content is decided. With a teacher its expectation is the target instead of the drawn image and
    noise: the same minimum where the teacher is right, with far less variance.
    """

    def loss_of_step(step: int) -> Tensor:
        generator = step_generator(settings.seed, step)
        size = settings.batch_size
        rows = torch.randint(len(latents), (size,), generator=generator)
        clean = latents[rows].float()
        noise, share = draw_noise(family, clean, generator)
        dropped = torch.rand(size, generator=generator) < 0.1
        captions = torch.where(dropped[:, None], null_tokens, tokens[rows])
        noised = family.noise(clean, noise, share)
        target = noised.target
        if teacher is not None:
            target = family.noise(*teacher.expect(clean, noise, share, captions), share).target
        text = family.encode(modules, captions, dropped)
        prediction = family.predict(modules[family.denoiser], noised.sample, noised.timestep, text)
        return F.mse_loss(prediction, target)

    return loss_of_step


def draw_noise(family: Family, clean: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Noise like `clean` (images, channels, height, width), and its share (images,), within the family's schedule."""
    noise = torch.randn(clean.shape, generator=generator)
    share = torch.sigmoid(0.5 + 1.2 * torch.randn(len(clean), generator=generator))
    return noise, share.clamp(*family.noise_range)


def train_denoiser(
    modules: nn.ModuleDict, loss: Callable[[int], Tensor], settings: LoopSettings, state_file: Path
) -> None:
    """Train denoiser and text encoders together on a `denoising_loss`."""
    optimizers = muon_and_adamw(modules, settings)
    run_loop(modules, loss, settings, state_file, "denoiser", optimizers, ema_decay=0.9995)
