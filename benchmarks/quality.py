"""Time to a quality: what our default reaches at half its budget, against the plain loop with the published settings.

The quality is two numbers of a trained model, on images and prompts that no training sees: denoising-retrieval
accuracy, and the gain in verified alignment over the base. Time is the processor's, of training steps alone:
evaluation, and what else runs on the machine, do not count. The plain loop gets six times our time and is looked at
twice. The ratio is a lower bound: the last look at which it did not have both numbers, 1 where it has them at once.

    python benchmarks/quality.py [FAMILY SEED]     # everything, or one comparison; finished ones are kept
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import PROJECT, embedded, published, rendered_data, trainer
from reference_loop import step as plain_step
from step import whole_batch

from softrepa_pipeline.backbones import Backbone, inject
from softrepa_pipeline.evaluation.retrieval import draw_distractors, retrieval_hits
from softrepa_pipeline.inference import SamplingConfig, draw
from softrepa_pipeline.shapes.dataset import WorldConfig, read_images, read_prompts
from softrepa_pipeline.shapes.verifier import verify
from softrepa_pipeline.soft_tokens import SoftTokens
from softrepa_pipeline.training import TrainingSet, fit_config
from softrepa_pipeline.training.interruption import Interruption
from softrepa_pipeline.training.loading import load_step

_FAMILIES = ("sdxl", "sd3")
_SEEDS = (0, 1, 2)
_WORLD = WorldConfig(train_images=4096, validation_prompts_per_task=60, test_prompts_per_task=40)
_LOOKS = (3.0, 6.0)  # multiples of our time at which the plain loop is measured
_GUIDANCE = 3.0
_BATCH_SIZE, _ROWS = 16, 4
_PARTS = PROJECT / "benchmarks/quality"


@dataclass(frozen=True)
class Quality:
    """Share of images whose own caption has the lowest error, and of prompts that are drawn as they say."""

    retrieval: float
    alignment: float


@dataclass(frozen=True)
class Yardstick:
    """Measures a model with whatever is injected."""

    backbone: Backbone
    world: Path

    def measure(self) -> Quality:
        images, own = read_images(self.world, "test", 240)
        captions = [[p.text, *others] for p, others in zip(own, draw_distractors(images, own, 7, 0), strict=True)]
        hits = retrieval_hits(self.backbone, images, captions, 0)
        prompts = read_prompts(self.world, "validation")
        drawn = draw(self.backbone, [p.text for p in prompts], SamplingConfig(16, 64), _GUIDANCE, "verified images")
        right = [verify(image, prompt.claim) for prompt, (image,) in zip(prompts, drawn, strict=True)]
        return Quality(float(hits.mean()), float(np.mean(right)))


def measure() -> dict[str, Any]:
    """`time_to_quality` by family: median over seeds of their time over ours, which is at least that."""
    runs = {family: [_kept(family, seed) for seed in _SEEDS] for family in _FAMILIES}
    ratios = {family: statistics.median(run["ratio"] for run in of_family) for family, of_family in runs.items()}
    return {"time_to_quality": ratios, "time_to_quality_runs": runs}


def _kept(family: str, seed: int) -> dict[str, Any]:
    file = _PARTS / f"{family}-{seed}.json"
    if not file.is_file():
        result = compare(family, seed)
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps(result, indent=2) + "\n")
    return json.loads(file.read_text())


def compare(family: str, seed: int) -> dict[str, Any]:
    """One training of ours to half its budget, then the plain loop until it is as good or has had six times as long."""
    torch.set_num_threads(1)
    backbone = embedded(family)
    with tempfile.TemporaryDirectory() as folder:
        data = rendered_data(backbone.family, Path(folder), _WORLD)
        yardstick = Yardstick(backbone, Path(folder) / "world")
        base = yardstick.measure()
        ours, seconds = _train_ours(yardstick, data, seed)
        print(f"{family} {seed}: base {base}, ours {ours} after {seconds:.0f} s", flush=True)
        looks, ratio = {}, 1.0
        for multiple, quality in _train_plainly(yardstick, data, seed, seconds):
            print(f"{family} {seed}: plain loop {quality} after {multiple:g} × that", flush=True)
            looks[multiple] = quality
            if quality.retrieval >= ours.retrieval and quality.alignment >= ours.alignment:
                break
            ratio = multiple
    return {
        "ratio": ratio,
        "seconds": seconds,
        "base": vars(base),
        "ours": vars(ours),
        "plain": {f"{times:g}": vars(quality) for times, quality in looks.items()},
    }


def _train_ours(yardstick: Yardstick, data: TrainingSet, seed: int) -> tuple[Quality, float]:
    """Quality and time of our default at half its steps, its calibration included."""
    backbone = yardstick.backbone
    config = fit_config("embedded", backbone.family, "softrepa", {"seed": seed})
    made = trainer(backbone, data, config, 64)
    with inject(backbone.denoiser, made.sites, made.method.injected):
        started = time.process_time()
        made.prepare()
        for number in range(made.num_steps // 2):
            loaded = load_step(backbone, made.data, config, made.progress.density, number, slice(None))
            made.step(number, loaded, 0.0, Interruption())
        seconds = time.process_time() - started
        return yardstick.measure(), seconds


def _train_plainly(yardstick: Yardstick, data: TrainingSet, seed: int, unit: float) -> Iterator[tuple[float, Quality]]:
    """The plain loop's quality at each multiple of `unit` seconds."""
    backbone = yardstick.backbone
    config = published(backbone.family, _BATCH_SIZE, seed=seed)
    made = trainer(backbone, data, config, _ROWS * _BATCH_SIZE)  # for its tokens, which start as the published ones
    tokens: SoftTokens = made.method.tokens
    optimizer = torch.optim.AdamW(tokens.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)
    number, seconds = 0, 0.0
    for multiple in _LOOKS:
        started = time.process_time() - seconds
        while seconds < multiple * unit:
            batch = whole_batch(backbone, made.data, config, number)
            plain_step(backbone, tokens, optimizer, batch, _ROWS, config.denoising_weight)
            number, seconds = number + 1, time.process_time() - started
        with inject(backbone.denoiser, made.sites, tokens):
            yield multiple, yardstick.measure()


if __name__ == "__main__":
    if len(sys.argv) > 1:
        _kept(sys.argv[1], int(sys.argv[2]))
    else:
        print(json.dumps(measure()["time_to_quality"]))
