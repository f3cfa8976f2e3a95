"""A training as a file, so that one process or many, here or on other machines, run the same."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
from PIL import Image
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from softrepa_pipeline.backbones import Backbone, ModelConfig, load_backbone
from softrepa_pipeline.config import build
from softrepa_pipeline.inference import SamplingConfig, draw
from softrepa_pipeline.soft_tokens import SoftTokens, save_soft_tokens
from softrepa_pipeline.stage import write_json
from softrepa_pipeline.tensor_store import TensorStore
from softrepa_pipeline.training.buckets import latents_by_bucket
from softrepa_pipeline.training.config import ExecutionConfig, FitConfig
from softrepa_pipeline.training.data import LatentsOf, TrainingSet
from softrepa_pipeline.training.distributed import joined
from softrepa_pipeline.training.fit import Observer, fit
from softrepa_pipeline.training.texts import TextCache, are_kept, keep_texts

_GRID_COLUMNS = 4
_LEAST_SIDE = 128


@dataclass(frozen=True)
class SamplesConfig:
    """Images drawn before, half-way and after training, always with the same prompts and seeds."""

    guidance: float
    settings: SamplingConfig
    num_prompts: int = 8


@dataclass(frozen=True)
class Provenance:
    """What the token file says of where it comes from (docs/format.md)."""

    base_model: str
    base_digest: str
    run_id: str
    licence: str
    data: str = ""
    data_digest: str = ""


@dataclass(frozen=True)
class Job:
    """Everything that a training reads, and the folder where it keeps checkpoints, curves, samples and tokens.

    `latents` is the folder of a tensor store with the latents of all images that the table `negatives` names, or with
    `fit.aspect_ratio_buckets` one a bucket, with the table `buckets` (image_id, bucket); `mirrored` with `fit.flip`
    those of the mirrored images, `texts` where text states may be kept.
    """

    model: ModelConfig
    fit: FitConfig
    execution: ExecutionConfig
    samples: SamplesConfig
    latents: tuple[str, ...]
    negatives: str
    folder: str
    provenance: Provenance
    mirrored: tuple[str, ...] = ()
    buckets: str | None = None
    texts: TextCache | None = None

    @property
    def metadata(self) -> dict[str, str]:
        """What stands in the token file besides its tensors."""
        settings = json.dumps(asdict(self.fit))
        return {
            "family": self.model.family,
            "objective": self.fit.objective,
            "settings": settings,
            **asdict(self.provenance),
        }

    @property
    def tokens_file(self) -> Path:
        return Path(self.folder) / "soft_tokens.safetensors"

    def write(self) -> Path:
        """`job.json` in the job's folder, which `run_job` and `python -m softrepa_pipeline.training` take."""
        file = Path(self.folder) / "job.json"
        write_json(file, asdict(self))
        return file


def read_job(file: Path) -> Job:
    """Raises ValueError where the file is not a job."""
    return build(Job, json.loads(file.read_text()), "job")


def launch(job: Job) -> None:
    """Run a job here, in as many processes as it asks for; `job.tokens_file` is there when it returns.

    Raises:
        KeyboardInterrupt: it was asked to stop, and goes on from its checkpoint when launched again.
        RuntimeError: the processes died more often than `execution.max_restarts`.
    """
    file = job.write()
    if job.execution.num_processes == 1:
        run_job(file)
        return
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=job.execution.num_processes,
        run_id="softrepa",
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=job.execution.max_restarts,
        monitor_interval=1,
        start_method="spawn",
    )
    # Restarted processes would read the addresses of the dead from the launcher's store (pytorch issue 135712).
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    try:
        elastic_launch(config, run_job)(file)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        raise RuntimeError(f"training failed in process {rank}: {failure.message}") from error


def run_job(file: Path) -> None:
    """One process of a job, alone or as torch's launcher started it."""
    job = read_job(Path(file))
    with joined() as group:
        model = job.model
        if group.size > 1 and model.device == "cuda":
            model = replace(model, device=f"cuda:{os.environ['LOCAL_RANK']}")
        backbone = load_backbone(model)
        if job.execution.compile:
            cast(Any, backbone.denoiser).compile_repeated_blocks()
        mirrored_of = latents_of(job, job.mirrored) if job.mirrored else None
        data = TrainingSet.read(latents_of(job, job.latents), Path(job.negatives), mirrored_of)
        if job.texts is not None and are_kept(backbone, job.execution):
            captions = data.drawn_captions(job.fit)
            data = replace(data, texts=keep_texts(backbone, model, captions, job.texts, group))
        folder = Path(job.folder)
        samples = Samples(backbone, data.all_captions, job.samples, folder / "samples")
        observer = Observer(on_milestone=samples.draw)
        tokens = fit(backbone, data, job.fit, folder, job.execution, observer, group)
        if group.rank == 0:
            save_soft_tokens(tokens, job.tokens_file, job.metadata)


def latents_of(job: Job, folders: tuple[str, ...]) -> LatentsOf:
    """The latents in a job's folders, of which there are several with `fit.aspect_ratio_buckets`."""
    stores = [TensorStore(Path(folder)) for folder in folders]
    return stores[0].rows if job.buckets is None else partial(latents_by_bucket, stores, Path(job.buckets))


@dataclass(frozen=True)
class Samples:
    """Draws the same captions at every milestone and keeps them as one grid a step."""

    backbone: Backbone
    captions: list[str]
    config: SamplesConfig
    folder: Path

    def draw(self, step: int, _tokens: SoftTokens) -> None:
        """`step-<n>.png`: the model as it stands, with the tokens that are injected."""
        stride = max(1, len(self.captions) // self.config.num_prompts)
        prompts = self.captions[::stride][: self.config.num_prompts]
        label = f"samples at step {step}"
        images = draw(self.backbone, prompts, self.config.settings, self.config.guidance, label)[:, 0]
        self.folder.mkdir(parents=True, exist_ok=True)
        unfinished = self.folder / f"step-{step:07d}.partial.png"
        _grid(images).save(unfinished)
        unfinished.replace(self.folder / f"step-{step:07d}.png")


def _grid(images: np.ndarray) -> Image.Image:
    """Images (count, height, width, 3) side by side in rows of four, small ones enlarged."""
    height, width = images.shape[1:3]
    grid = Image.new("RGB", (min(_GRID_COLUMNS, len(images)) * width, -(-len(images) // _GRID_COLUMNS) * height))
    for index, image in enumerate(images):
        row, column = divmod(index, _GRID_COLUMNS)
        grid.paste(Image.fromarray(image), (column * width, row * height))
    scale = max(1, _LEAST_SIDE // height)
    return grid.resize((grid.width * scale, grid.height * scale), Image.Resampling.NEAREST)
