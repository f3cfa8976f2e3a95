"""What the benchmarks share: the embedded bases with a small rendered world, and timings side by side."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from softrepa_pipeline.backbones import Backbone, ModelConfig, load_backbone
from softrepa_pipeline.evaluation.overhead import in_turns
from softrepa_pipeline.ingestion import load_rgb
from softrepa_pipeline.mining.structured import CaptionEditor
from softrepa_pipeline.shapes.dataset import WorldConfig, write_world
from softrepa_pipeline.tensor_store import TensorStore
from softrepa_pipeline.training import (
    ExecutionConfig,
    FitConfig,
    Observer,
    TrainingSet,
    encode_latents,
    fit_config,
)
from softrepa_pipeline.training.distributed import Group
from softrepa_pipeline.training.fit import Trainer

PROJECT = Path(__file__).resolve().parent.parent
FAMILIES = ("sd15", "sdxl", "sd3")
ROUNDS = 7
_SMALL = WorldConfig(train_images=256, validation_prompts_per_task=2, test_prompts_per_task=2)


def model_config(family: str) -> ModelConfig:
    return ModelConfig(family, str(PROJECT / "data/06_models/embedded" / family), max_sequence_length=0)


def embedded(family: str) -> Backbone:
    return load_backbone(model_config(family))


def rendered_data(family: str, folder: Path, world: WorldConfig = _SMALL) -> TrainingSet:
    """Rendered images with their captions and structured negatives, encoded by the base; no mined negatives."""
    write_world(world, folder / "world")
    table = pq.read_table(folder / "world/train/pairs.parquet").to_pydict()
    captions = table["captions"]
    ids = [hashlib.sha256(image).hexdigest()[:32] for image in table["image"]]
    latents = encode_latents(
        model_config(family),
        ids,
        lambda places: (load_rgb(table["image"][place]) for place in places),
        (32, 32),
        TensorStore(folder / "latents"),
    )
    editor = CaptionEditor(caption for own in captions for caption in own)
    edits = [[[edit.text for edit in editor.edits(caption, own)] for caption in own] for own in captions]
    every = sorted({caption for own in captions for caption in own})
    return TrainingSet(latents, ids, captions, edits, [[] for _ in captions], every, np.arange(len(captions)))


def published(family: str, batch_size: int, **changes: object) -> FitConfig:
    """The published settings of a family at the embedded bases' resolution."""
    settings = {"resolution": 32, "num_steps": 1000, "batch_size": batch_size, **changes}
    return fit_config("published", family, "softrepa", settings)


def trainer(backbone: Backbone, data: TrainingSet, config: FitConfig, pairs_at_once: int) -> Trainer:
    """A training that is stepped by hand; its checkpoints go to a temporary folder."""
    execution = ExecutionConfig(max_pairs_in_memory=pairs_at_once, checkpoint_steps=10**6, checkpoint_minutes=1e6)
    folder = Path(tempfile.mkdtemp(prefix="softrepa-bench-"))
    return Trainer(backbone, data, config, folder, execution, Observer(), Group())


def memory_mib(name: str) -> float:
    """A line of this process's status (VmRSS, VmHWM), in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return float(next(line for line in lines if line.startswith(name)).split()[1]) / 1024


def side_by_side(
    first: Callable[[int], None], second: Callable[[int], None], rounds: int = ROUNDS
) -> tuple[float, float, float]:
    """Median seconds of both, run in turns after a warm-up, and the median of second / first round by round."""
    # partial(first, number) is what is timed in a round.
    ours, theirs = in_turns([partial(partial, first), partial(partial, second)], rounds)
    return float(np.median(ours)), float(np.median(theirs)), float(np.median(theirs / ours))
