"""Training of the embedded models from scratch: the loop itself, autoencoder and CLIP.

Runs with torch, transformers and diffusers alone. Every loop is resumable: it writes its whole state to one file, and
a step's data is a pure function of (seed, step), so that a resumed run ends where an undisturbed one does.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor, nn
from tqdm import tqdm
from transformers import CLIPModel, CLIPTokenizer

from softrepa_pipeline.shapes.captions import draw_captioned
from softrepa_pipeline.shapes.scene import render


@dataclass(frozen=True)
class LoopSettings:
    """Length and optimiser of one training loop; `images` are counted, not steps."""

    images: int
    batch_size: int
    learning_rate: float
    weight_decay: float = 0.01
    warmup_share: float = 0.02
    decay_share: float = 0.3
    seed: int = 0
    checkpoint_steps: int = 500

    @property
    def num_steps(self) -> int:
        return self.images // self.batch_size

    def learning_rate_at(self, step: int) -> float:
        """Warm up, hold, then decay to zero as 1 − sqrt."""
        progress = (step + 1) / self.num_steps
        warm = min(1.0, progress / self.warmup_share)
        late = max(0.0, progress - (1 - self.decay_share)) / self.decay_share
        return self.learning_rate * warm * (1 - math.sqrt(min(1.0, late)))


@dataclass(frozen=True)
class Pool:
    """Rendered training images (N, 3, 32, 32) uint8 with their captions, a share of them faulty."""

    images: Tensor
    captions: list[str]


def draw_pool(num_images: int, fault_share: float, seed: int) -> Pool:
    """Draw the images that the base models are trained on."""
    rng = np.random.default_rng([seed, num_images])
    images = np.empty((num_images, 32, 32, 3), dtype=np.uint8)
    captions = []
    for index in tqdm(range(num_images), desc="rendering", mininterval=5):
        item = draw_captioned("train", fault_share, rng)
        images[index] = render(item.scene)
        captions.append(item.caption)
    return Pool(torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), captions)


def to_unit(images: Tensor) -> Tensor:
    """uint8 [0, 255] to float [−1, 1], as the autoencoder takes it."""
    return images.float() / 127.5 - 1


def _adamw(parameters: list[nn.Parameter], settings: LoopSettings) -> torch.optim.Optimizer:
    return torch.optim.AdamW(
        parameters, lr=settings.learning_rate, weight_decay=settings.weight_decay, betas=(0.9, 0.98)
    )


def muon_and_adamw(modules: nn.ModuleDict, settings: LoopSettings) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the denoiser's blocks, AdamW for the rest: text starts to matter much sooner."""
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in modules.named_parameters():
        if parameter.requires_grad:
            (matrices if parameter.ndim == 2 and ".transformer_blocks." in name else others).append(parameter)
    muon = torch.optim.Muon(
        matrices, lr=settings.learning_rate, weight_decay=settings.weight_decay, adjust_lr_fn="match_rms_adamw"
    )
    return [muon, _adamw(others, settings)]


def run_loop(
    modules: nn.ModuleDict,
    loss_of_step: Callable[[int], Tensor],
    settings: LoopSettings,
    state_file: Path,
    name: str,
    optimizers: list[torch.optim.Optimizer] | None = None,
    ema_decay: float | None = None,
) -> None:
    """Train `modules` for `settings.num_steps`, by AdamW unless told; goes on from `state_file` where it exists.

    With `ema_decay` the modules end with the exponential moving average of their weights.
    """
    parameters = [p for p in modules.parameters() if p.requires_grad]
    optimizers = optimizers or [_adamw(parameters, settings)]
    average = [p.detach().clone() for p in parameters]
    start = 0
    if state_file.exists():
        state = torch.load(state_file, weights_only=True)
        modules.load_state_dict(state["modules"])
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        average, start = state["average"], state["step"]
    with tqdm(total=settings.num_steps, initial=start, desc=name, mininterval=5) as bar:
        for step in range(start, settings.num_steps):
            loss = loss_of_step(step)
            for optimizer in optimizers:
                optimizer.zero_grad(set_to_none=True)
            loss.backward()
            _average_gradients(parameters)
            nn.utils.clip_grad_norm_(parameters, 1.0)
            for optimizer in optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = settings.learning_rate_at(step)
                optimizer.step()
            decay = min(ema_decay or 0.0, (step + 1) / (step + 10))
            torch._foreach_lerp_(average, [p.detach() for p in parameters], 1 - decay)
            bar.update()
            if step % 50 == 0:
                bar.set_postfix(loss=f"{loss.item():.4f}")
            is_due = (step + 1) % settings.checkpoint_steps == 0 or step + 1 == settings.num_steps
            if is_due and _rank() == 0:
                _save_state(state_file, modules, optimizers, average, step + 1)
    with torch.no_grad():
        for parameter, mean in zip(parameters, average, strict=True):
            parameter.copy_(mean)


def _save_state(
    path: Path, modules: nn.ModuleDict, optimizers: list[torch.optim.Optimizer], average: list[Tensor], step: int
) -> None:
    saved = [optimizer.state_dict() for optimizer in optimizers]
    state = {"modules": modules.state_dict(), "optimizers": saved, "average": average, "step": step}
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    os.replace(partial, path)


def _rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def _average_gradients(parameters: list[nn.Parameter]) -> None:
    """One flat all-reduce over the processes that share a step's batch."""
    if not dist.is_initialized():
        return
    gradients = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([g.flatten() for g in gradients])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))


def step_generator(seed: int, step: int) -> torch.Generator:
    entropy = np.random.SeedSequence([seed, step, _rank()])
    return torch.Generator().manual_seed(int(entropy.generate_state(1, np.uint64)[0]))


def train_autoencoder(
    autoencoder: AutoencoderKL, images: Tensor, settings: LoopSettings, state_file: Path
) -> AutoencoderKL:
    """Train on L1 + MSE + a slight KL; afterwards latents are scaled to unit deviation by the config.

    The decoder sees latents with a tenth of their deviation as noise, so that it forgives a denoiser's small errors.
    """

    def loss_of_step(step: int) -> Tensor:
        generator = step_generator(settings.seed, step)
        batch = to_unit(images[torch.randint(len(images), (settings.batch_size,), generator=generator)])
        posterior = autoencoder.encode(batch).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=generator)
        spread = posterior.mean.detach().std()
        decoded = autoencoder.decode(posterior.mean + posterior.std * noise + 0.05 * spread * noise).sample
        kl = posterior.kl().mean() / posterior.mean[0].numel()
        return F.l1_loss(decoded, batch) + 2 * F.mse_loss(decoded, batch) + 1e-4 * kl

    run_loop(nn.ModuleDict({"autoencoder": autoencoder}), loss_of_step, settings, state_file, "autoencoder")
    latents = encode(autoencoder, images[:4096], scaled=False)
    autoencoder.register_to_config(scaling_factor=float(1 / latents.std()), shift_factor=float(latents.mean()))
    return autoencoder


@torch.no_grad()
def encode(autoencoder: AutoencoderKL, images: Tensor, scaled: bool = True, batch_size: int = 256) -> Tensor:
    """Posterior means (N, 16, 8, 8) of uint8 images, shifted and scaled as the stock pipelines expect."""
    parts = [autoencoder.encode(to_unit(part)).latent_dist.mean for part in images.split(batch_size)]
    latents = torch.cat(parts)
    config = autoencoder.config
    return (latents - (config.shift_factor or 0.0)) * config.scaling_factor if scaled else latents


def train_clip(
    clip: CLIPModel, tokenizer: CLIPTokenizer, pool: Pool, settings: LoopSettings, state_file: Path
) -> CLIPModel:
    """Train CLIP's symmetric contrastive loss; captions equal to the positive do not count as negatives."""
    tokens = tokenize(tokenizer, pool.captions)

    def loss_of_step(step: int) -> Tensor:
        rows = torch.randint(len(tokens), (settings.batch_size,), generator=step_generator(settings.seed, step))
        text = clip.get_text_features(input_ids=tokens[rows]).pooler_output
        image = clip.get_image_features(pixel_values=to_unit(pool.images[rows])).pooler_output
        logits = F.normalize(image, dim=-1) @ F.normalize(text, dim=-1).T * clip.logit_scale.exp().clamp(max=100)
        same = (tokens[rows][:, None] == tokens[rows][None]).all(-1) & ~torch.eye(len(rows), dtype=torch.bool)
        logits = logits.masked_fill(same, -torch.inf)
        target = torch.arange(len(rows))
        return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2

    run_loop(nn.ModuleDict({"clip": clip}), loss_of_step, settings, state_file, "clip")
    return clip


def tokenize(tokenizer: CLIPTokenizer, captions: list[str]) -> Tensor:
    """Token ids (N, 20), padded and cut to the tokenizer's length."""
    encoded = tokenizer(
        captions, padding="max_length", max_length=tokenizer.model_max_length, truncation=True, return_tensors="pt"
    )
    return encoded.input_ids
