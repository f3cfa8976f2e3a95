"""One training step against the public trainer's: identical mathematics, and with 3 negatives an image."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from common import FAMILIES, embedded, published, rendered_data, side_by_side, trainer
from reference_loop import Batch, accumulate, step

from softrepa_pipeline.backbones import Backbone, inject
from softrepa_pipeline.training import FitConfig, TrainingSet
from softrepa_pipeline.training.draws import draw_noise
from softrepa_pipeline.training.interruption import Interruption
from softrepa_pipeline.training.loading import load_step

_BATCH_SIZE = 16
_ROWS = 4
_EVERYTHING = slice(None)


def measure() -> dict[str, Any]:
    """`step_ratio` and `k3_ratio` by family, with the seconds a step that they come from."""
    torch.set_num_threads(1)
    results: dict[str, Any] = {"step_ratio": {}, "k3_ratio": {}, "step_seconds": {}, "gradient_difference": {}}
    for family in FAMILIES:
        backbone = embedded(family)
        with tempfile.TemporaryDirectory() as folder:
            data = rendered_data(family, Path(folder))
            for name, num_negatives in (("step_ratio", None), ("k3_ratio", 3)):
                config = published(family, _BATCH_SIZE, num_negatives=num_negatives)
                ours, theirs, ratio = _compare(backbone, data, config)
                results[name][family] = ratio
                results["step_seconds"][f"{family} {name}"] = [ours, theirs]
                print(f"{name} {family}: {ours:.3f} s ours, {theirs:.3f} s plain loop, ratio {ratio:.2f}", flush=True)
            difference = _gradient_difference(backbone, data, published(family, _BATCH_SIZE))
            results["gradient_difference"][family] = difference
            print(f"gradients {family}: relative difference {difference:.1e}", flush=True)
    return results


def _compare(backbone: Backbone, data: TrainingSet, config: FitConfig) -> tuple[float, float, float]:
    ours = trainer(backbone, data, config, _ROWS * _BATCH_SIZE)
    plain = trainer(backbone, data, config, _ROWS * _BATCH_SIZE).method.tokens
    optimizer = torch.optim.AdamW(plain.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)
    with inject(backbone.denoiser, ours.sites, ours.method.injected):
        ours.prepare()
    # The plain loop's step holds everything of a step too: which images, captions and noise, texts encoded, update.
    whole = published(backbone.family, _BATCH_SIZE)

    def our_step(number: int) -> None:
        with inject(backbone.denoiser, ours.sites, ours.method.injected):
            loaded = load_step(backbone, data, config, ours.progress.density, number, _EVERYTHING)
            ours.step(number, loaded, 0.0, Interruption())

    def plain_step(number: int) -> None:
        batch = whole_batch(backbone, data, whole, number)
        step(backbone, plain, optimizer, batch, _ROWS, config.denoising_weight)

    return side_by_side(our_step, plain_step)


def _gradient_difference(backbone: Backbone, data: TrainingSet, config: FitConfig) -> float:
    """Relative difference of the gradients of one step, on the same images, captions and noise."""
    ours = trainer(backbone, data, config, _ROWS * _BATCH_SIZE)
    with inject(backbone.denoiser, ours.sites, ours.method.injected):
        ours.prepare()
        loaded = load_step(backbone, data, config, ours.progress.density, 0, _EVERYTHING)
        results = ours.gradients(loaded)
    found = torch.cat([parameter.grad.flatten() for parameter in ours.method.trainable if parameter.grad is not None])
    loss = sum(float(result.losses.loss.sum()) for result in results) / config.batch_size
    ours.method.zero_grad()
    batch = whole_batch(backbone, data, config, 0)
    with torch.no_grad():
        prompt = backbone.encode_prompts(batch.captions)
    plain_loss = accumulate(backbone, ours.method.tokens, batch, prompt, _ROWS, config.denoising_weight)
    wanted = torch.cat([parameter.grad.flatten() for parameter in ours.method.trainable if parameter.grad is not None])
    return max(float((found - wanted).norm() / wanted.norm()), abs(loss - plain_loss) / abs(plain_loss))


def whole_batch(backbone: Backbone, data: TrainingSet, config: FitConfig, number: int) -> Batch:
    """What the public trainer draws for a step: one noise and one timestep for all images, a caption each."""
    positions = config.positions_of(number)
    candidates = data.candidates(config, positions)
    draws = draw_noise(config, positions, data.latents.shape[1:], torch.ones(1), slice(0, 1))
    own = [captions[0] for captions in candidates.captions]
    return Batch(data.latents[candidates.rows], own, draws.noise, draws.timestep)


if __name__ == "__main__":
    measure()
