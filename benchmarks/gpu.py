"""Full-size denoisers with random weights, 512 pixels, bf16, on a GPU: pairs a second, utilisation, memory.

Ours takes three negatives an image with compiled blocks, the plain loop all 16 × 16 pairs: both give every image one
step. `same_pairs` is ours, compiled too, on the plain loop's own 256 pairs.

    python benchmarks/gpu.py            # needs CUDA; torch, transformers and diffusers are enough
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from typing import Any, cast

import torch
from common import FAMILIES, PROJECT
from full_size import LATENT_CHANNELS, POOLED, TEXT, fill, full_size, published_tokens
from reference_loop import Batch
from reference_loop import accumulate as accumulate_plainly

from softrepa_pipeline.backbones import Backbone, Prompt, inject
from softrepa_pipeline.training import PRESETS
from softrepa_pipeline.training.device import peak_flop
from softrepa_pipeline.training.estimate import count
from softrepa_pipeline.training.loading import StepData
from softrepa_pipeline.training.methods import Method
from softrepa_pipeline.training.pair_engine import Plan, accumulate

_BATCH_SIZE = 16
_ROWS = 4
_ROUNDS = 5
_SIDE = 64  # of the latents, for 512 pixels


def measure(device: str = "cuda") -> dict[str, Any]:
    """Figures by family, and the highest rate of a matrix product that was seen."""
    results: dict[str, Any] = {"device": torch.cuda.get_device_name(), "matmul_teraflop": _matmul_rate(device) / 1e12}
    for family in FAMILIES:
        backbone = full_size(family, PROJECT / "data/06_models/embedded" / family)
        fill(backbone.denoiser, torch.bfloat16, device)
        backbone.pipeline.to(device)
        shape = (LATENT_CHANNELS[family], _SIDE, _SIDE)
        length, width = TEXT[family]
        text = torch.randn(_BATCH_SIZE * 4, length, width, dtype=torch.bfloat16, device=device)
        pooled = text[:, 0, : POOLED[family]].clone() if family in POOLED else None
        results[family] = compare(backbone, shape, Prompt(text, pooled))
        print(family, json.dumps(results[family]), flush=True)
        del backbone
        torch.cuda.empty_cache()
    return results


def compare(backbone: Backbone, shape: tuple[int, ...], prompt: Prompt) -> dict[str, float]:
    """The plain loop's step, then ours on the same pairs and with three negatives, all with the same tokens."""
    method = published_tokens(backbone).to(backbone.device)
    weight = PRESETS["published", backbone.family, "softrepa"].settings.denoising_weight
    latents = torch.randn(_BATCH_SIZE, *shape, dtype=prompt.states.dtype, device=backbone.device)
    noise, timestep = torch.randn_like(latents[:1]), torch.full((1,), 500.0, device=backbone.device)
    batch = Batch(latents, [], noise, timestep)
    figures = {}
    plain = prompt[torch.arange(_BATCH_SIZE)]
    theirs = _seconds(lambda: accumulate_plainly(backbone, method.tokens, batch, plain, _ROWS, weight))
    figures["plain_pairs_per_second"] = _BATCH_SIZE**2 / theirs
    cast(Any, backbone.denoiser).compile_repeated_blocks()
    square = torch.stack([torch.arange(_BATCH_SIZE).roll(-row) for row in range(_BATCH_SIZE)])
    for name, text_of in (("same_pairs", square), ("k3", torch.arange(4 * _BATCH_SIZE).view(_BATCH_SIZE, 4))):
        step = _step_data(backbone, batch, prompt, text_of)
        with inject(backbone.denoiser, backbone.sites(method.config.layers), method.injected):
            if backbone.device.type == "cuda":
                torch.cuda.reset_peak_memory_stats()
            seconds = _seconds(lambda step=step: _ours(backbone, method, step))  # type: ignore[misc]
            figures[f"{name}_pairs_per_second"] = text_of.numel() / seconds
            figures[f"{name}_ratio"] = theirs / seconds
            figures[f"{name}_mfu"] = text_of.numel() * _flop(backbone, step) / seconds / _peak(backbone)
            if backbone.device.type == "cuda":
                figures[f"{name}_gib"] = torch.cuda.max_memory_allocated() / 2**30
    return figures


def _step_data(backbone: Backbone, batch: Batch, prompt: Prompt, text_of: torch.Tensor) -> StepData:
    timestep = batch.timestep.expand(len(batch.latents))
    noised = backbone.noise(batch.latents, batch.noise.expand_as(batch.latents), timestep)
    ones, rows = torch.ones(len(text_of)), torch.arange(len(text_of))
    return StepData(rows, noised, timestep.cpu(), ones, prompt, text_of, torch.ones(text_of.shape, dtype=torch.bool))


def _ours(backbone: Backbone, method: Method, step: StepData) -> None:
    width = step.text_of.shape[1]
    plan = Plan(64 // width, 64, two_pass=False)
    for images in torch.arange(len(step)).split(plan.rows_at_once):
        rows = step.rows_at(images, torch.full((1,), 0.07), share=False)
        accumulate(backbone, method, rows, plan, len(step))


def _flop(backbone: Backbone, step: StepData) -> int:
    return count(backbone, step.rows_at(torch.arange(1), torch.ones(1), share=False).pairs[:1]).both


def _peak(backbone: Backbone) -> float:
    return peak_flop(backbone.device, cast(Any, backbone.denoiser).dtype) or float("nan")


def _seconds(call: Callable[[], Any]) -> float:
    """Median of five after a warm-up."""
    taken = []
    for number in range(-1, _ROUNDS):
        started = time.perf_counter()
        call()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        if number >= 0:
            taken.append(time.perf_counter() - started)
    return statistics.median(taken)


def _matmul_rate(device: str) -> float:
    matrix = torch.randn(8192, 8192, dtype=torch.bfloat16, device=device)
    return 2 * 8192**3 / _seconds(lambda: matrix @ matrix)


if __name__ == "__main__":
    print(json.dumps(measure(), indent=2))
