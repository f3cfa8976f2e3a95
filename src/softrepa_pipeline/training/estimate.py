"""What a training will take, before it starts: arithmetic, memory, disk, and time where the model can run here.

Nothing is guessed from a model's name: operations are counted, memory and time measured on the model itself. A model
that cannot run here is built from its configuration, without weights, and counted only.
"""

from __future__ import annotations

import math
import statistics
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import psutil
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from softrepa_pipeline.backbones import Backbone, Noised, Pairs, inject
from softrepa_pipeline.training import calibration, checkpoint, validation
from softrepa_pipeline.training.config import ExecutionConfig, FitConfig
from softrepa_pipeline.training.device import ENOUGH_PAIRS, bytes_per_pair, room_for
from softrepa_pipeline.training.initial import initial_tokens
from softrepa_pipeline.training.loading import StepData
from softrepa_pipeline.training.methods import METHODS, Method
from softrepa_pipeline.training.pair_engine import Plan, accumulate, choose_plan
from softrepa_pipeline.training.texts import are_kept, row_bytes

_WARM_UP, _TIMED = 2, 3
_WATCH_SECONDS = 0.001
_TIMESTEP = 500.0
_CAPTION = "a photo"  # all captions are padded to one length


@dataclass(frozen=True)
class Flop:
    """Operations, a multiply-add counted as two: a pair's forward, its forward and backward, a caption's encoding.

    Matrix products, convolutions and attention are counted; what pairs share (backbones/sharing.py) is counted in each.
    """

    forward: int
    both: int
    caption: int


@dataclass(frozen=True)
class Estimate:
    """What a training takes: FLOP of all processes, bytes and seconds of each of them.

    `plan` is the micro-batch; `pair_bytes` what autograd keeps of a pair, `token_bytes` soft tokens with gradient and
    optimiser. `peak_bytes` is what a process took beyond the loaded model when it ran a micro-batch, on a CPU with what
    torch's kernels and the heap keep; it and `step_seconds` are None for a model that cannot run here. `caption_bytes`
    are the text states of each of `num_captions` (0: not known) that are kept on disk, 0 where steps encode captions
    themselves. Not in it: the images' encoding, once, and samples drawn on the way.
    """

    num_steps: int
    plan: Plan
    flop: Flop
    step_flop: int
    total_flop: int
    weight_bytes: int
    pair_bytes: int
    token_bytes: int
    latent_bytes: int
    caption_bytes: int
    num_captions: int
    checkpoint_bytes: int
    peak_bytes: int | None
    step_seconds: float | None

    @property
    def activation_bytes(self) -> int:
        """What autograd keeps of a micro-batch."""
        return self.pair_bytes * self.plan.pairs_at_once

    @property
    def total_seconds(self) -> float | None:
        """The steps, and what is computed besides at the rate of the steps."""
        return None if self.step_seconds is None else self.step_seconds * self.total_flop / self.step_flop


def estimate(
    backbone: Backbone, config: FitConfig, execution: ExecutionConfig, num_images: int, num_captions: int = 0
) -> Estimate:
    """Count and measure a training on a data set of `num_images`; a backbone on the meta device is counted only.

    `num_captions` are those that it can score (`TrainingSet.drawn_captions`), where that is known.

    Raises:
        ValueError: a layer does not exist, or no image is left to train on.
    """
    if config.held_out_images >= num_images:
        raise ValueError(f"fit.held_out_images is {config.held_out_images}, but there are {num_images} images")
    idle, shape, sites = (
        _taken(backbone.device),
        latent_shape(backbone, config.resolution),
        backbone.sites(config.layers),
    )
    # Where tokens start changes nothing here, and without weights there is no state to start from.
    tokens = initial_tokens(backbone, sites, replace(config, initial="normal"), shape)
    method = METHODS[config.objective](tokens, config).to(backbone.device)
    with inject(backbone.denoiser, sites, method.injected):
        two = _step_data(backbone, shape, torch.arange(2)[:, None])
        pairs = two.rows_at(torch.arange(2), torch.ones(1), share=False).pairs
        pairs_at_once = _pairs_at_once(backbone, pairs, config, execution)
        plan = choose_plan(config, _num_images(config, execution), pairs_at_once)
        flop, pair_bytes = count(backbone, pairs[:1]), _bytes_per_pair(backbone, pairs)
        is_cached = are_kept(backbone, execution)
        in_step = replace(flop, caption=0) if is_cached else flop
        peak, seconds = None, None
        if backbone.device.type != "meta":
            highest, seconds = _measure(backbone, method, plan, execution, shape, is_cached)
            peak = highest - idle
    num_steps = config.steps_for(num_images - config.held_out_images)
    flop_a_step = step_flop(method, plan, in_step, execution.num_processes)
    measuring, encoding = _measuring_flop(config, in_step, num_steps), is_cached * num_captions * flop.caption
    return Estimate(
        num_steps=num_steps,
        plan=plan,
        flop=flop,
        step_flop=flop_a_step,
        total_flop=num_steps * flop_a_step + measuring + encoding,
        weight_bytes=_weight_bytes(backbone),
        pair_bytes=pair_bytes,
        token_bytes=_token_bytes(method, per_trained=3),  # the gradient and two moments
        latent_bytes=num_images * (1 + config.flip) * math.prod(shape) * backbone.pipeline.vae.dtype.itemsize,
        caption_bytes=row_bytes(two.prompt) if is_cached else 0,
        num_captions=num_captions,
        # Those that are kept, and the best or the one that is just being written.
        checkpoint_bytes=(checkpoint.NUM_KEPT + 1) * _token_bytes(method, per_trained=2),
        peak_bytes=peak,
        step_seconds=seconds,
    )


def latent_shape(backbone: Backbone, resolution: int) -> torch.Size:
    """(channels, height, width) of an image's latents."""
    side = resolution // backbone.pipeline.vae_scale_factor
    return torch.Size((backbone.pipeline.vae.config.latent_channels, side, side))


def _num_images(config: FitConfig, execution: ExecutionConfig) -> int:
    """Images of a step that fall to the process that has the most."""
    return math.ceil(config.batch_size / execution.num_processes)


def _num_captions(config: FitConfig, num_images: int) -> int:
    """Distinct captions that a process encodes for `num_images` of a step, but for the rare one that is drawn twice."""
    is_batch = config.candidates == "batch" and config.objective != "dsm"
    return config.batch_size if is_batch else num_images * config.num_candidates


@torch.no_grad()
def _step_data(backbone: Backbone, shape: torch.Size, text_of: Tensor) -> StepData:
    """A step as training loads it, of noise and one caption over and over; `text_of` (images, captions) as there."""
    device, dtype, num_images = backbone.device, backbone.pipeline.vae.dtype, len(text_of)
    sample = torch.randn((num_images, *shape), device=device, dtype=dtype)
    timestep = torch.full((num_images,), _TIMESTEP)
    prompt = backbone.encode_prompts([_CAPTION] * (int(text_of.max()) + 1))
    noised = Noised(sample, torch.randn_like(sample), timestep.to(device))
    is_candidate = torch.ones(text_of.shape, dtype=torch.bool)
    return StepData(torch.arange(num_images), noised, timestep, torch.ones(num_images), prompt, text_of, is_candidate)


def count(backbone: Backbone, pair: Pairs) -> Flop:
    """Operations of one pair with the tokens that are injected, and of encoding one caption."""
    forward = _flop(lambda: pair.predict(backbone))
    both = _flop(lambda: pair.predict(backbone).float().sum().backward())
    return Flop(forward, both, _flop(lambda: backbone.encode_prompts([_CAPTION])))


def _flop(call: Callable[[], Any]) -> int:
    # Torch does not count its fused attention for CPUs; the plain form has the same products.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def step_flop(method: Method, plan: Plan, flop: Flop, num_processes: int) -> int:
    """Operations of a step in all processes.

    AGSM's averages see every pair too, and where a first pass finds the weights every pair is seen twice. With a
    `base_weight` each image is also seen with the empty caption, by the base and with tokens.
    """
    config = method.config
    num_forwards = (config.objective == "agsm") + (plan.two_pass and not method.linear)
    num_captions = sum(
        _num_captions(config, len(part)) for part in torch.arange(config.batch_size).chunk(num_processes)
    )
    pulling = config.batch_size * (flop.both + flop.forward) if config.base_weight else 0
    return config.num_pairs * (flop.both + num_forwards * flop.forward) + pulling + num_captions * flop.caption


def _measuring_flop(config: FitConfig, flop: Flop, num_steps: int) -> int:
    """Calibration before the first step, and the validations."""
    num_batches = calibration.NUM_BUCKETS * calibration.NUM_BATCHES
    num_captions = _num_captions(config, config.batch_size)
    calibrating = num_batches * (config.num_pairs * flop.forward + num_captions * flop.caption)
    num_pairs = config.held_out_images * validation.NUM_LEVELS * max(2, config.num_candidates)
    return calibrating + math.ceil(num_steps / config.validation_steps) * num_pairs * flop.forward


def _weight_bytes(backbone: Backbone) -> int:
    """All parts of the pipeline: the text encoders work in every step, and the autoencoder draws the samples."""
    parts = [part for part in backbone.pipeline.components.values() if isinstance(part, nn.Module)]
    return sum(parameter.nbytes for part in parts for parameter in part.parameters())


def _token_bytes(method: Method, per_trained: int) -> int:
    """All banks, and `per_trained` numbers more for each one that is trained."""
    trained = sum(parameter.nbytes for parameter in method.trainable)
    return sum(parameter.nbytes for parameter in method.parameters()) + per_trained * trained


def _pairs_at_once(backbone: Backbone, pairs: Pairs, config: FitConfig, execution: ExecutionConfig) -> int:
    if execution.max_pairs_in_memory:
        return execution.max_pairs_in_memory
    # Whether they fit shows where the model runs.
    if backbone.device.type == "meta":
        return max(ENOUGH_PAIRS, config.row)
    return room_for(backbone, pairs, config.row).pairs_at_once


def _bytes_per_pair(backbone: Backbone, pairs: Pairs) -> int:
    """What autograd keeps of a pair; on the meta device as with the fused attention that a GPU has."""
    with _FusedAttention() if backbone.device.type == "meta" else nullcontext():
        return bytes_per_pair(backbone, pairs)


class _FusedAttention(TorchFunctionMode):
    """On the meta device torch would take the plain form of attention, which keeps a matrix of weights."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        called = _fused_attention if func is scaled_dot_product_attention else func
        return called(*args, **(kwargs or {}))


def _fused_attention(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> Tensor:
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(query, key, value)[0]


def _measure(
    backbone: Backbone, method: Method, plan: Plan, execution: ExecutionConfig, shape: torch.Size, is_cached: bool
) -> tuple[int, float]:
    """Bytes taken at the highest, and seconds of a step: its captions, unless cached, and its micro-batches."""
    config = method.config
    num_images = _num_images(config, execution)
    num_captions = _num_captions(config, num_images)
    captions = [_CAPTION] * num_captions
    text_of = torch.arange(plan.rows_at_once * config.num_candidates).view(plan.rows_at_once, -1) % num_captions
    step = _step_data(backbone, shape, text_of)
    rows = step.rows_at(torch.arange(len(step)), torch.ones(1), share=not execution.compile)

    def micro_batch() -> None:
        accumulate(backbone, method, rows, plan, config.batch_size)

    def while_loading() -> None:
        with ThreadPoolExecutor(1) as pool:
            ahead = pool.submit(backbone.encode_prompts, captions)
            micro_batch()
            ahead.result()

    # What fills the cache takes no more than a step that encodes beside its micro-batch.
    highest = max(_highest(backbone.device, while_loading) for _ in range(_WARM_UP))
    text_seconds = 0.0 if is_cached else _seconds(backbone.device, lambda: backbone.encode_prompts(captions))
    num_micro_batches = math.ceil(num_images / plan.rows_at_once)
    return highest, text_seconds + num_micro_batches * _seconds(backbone.device, micro_batch)


def _seconds(device: torch.device, call: Callable[[], Any]) -> float:
    """The median of three."""

    def now() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter()

    taken = []
    for _ in range(_TIMED):
        started = now()
        call()
        taken.append(now() - started)
    return statistics.median(taken)


def _taken(device: torch.device) -> int:
    """Bytes that are taken on the device, or of the process's resident memory for a CPU."""
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else psutil.Process().memory_info().rss


def _highest(device: torch.device, call: Callable[[], Any]) -> int:
    """Bytes that are taken at the highest while a call runs."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        call()
        return torch.cuda.max_memory_allocated(device)
    seen, done = [_taken(device)], threading.Event()

    def watch() -> None:
        while not done.wait(_WATCH_SECONDS):
            seen.append(_taken(device))

    with ThreadPoolExecutor(1) as pool:
        pool.submit(watch)
        try:
            call()
        finally:
            done.set()
    return max(seen)
