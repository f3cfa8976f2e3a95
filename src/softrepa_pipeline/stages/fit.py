"""The training stage: soft tokens on a frozen base."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from softrepa_pipeline.backbones import ModelConfig
from softrepa_pipeline.caches import CacheConfig, cache_folders, limited
from softrepa_pipeline.config import build
from softrepa_pipeline.ingestion import aspect_ratios, image_ids, read_images
from softrepa_pipeline.runners import Runner, RunnerConfig, make_runner
from softrepa_pipeline.soft_tokens import load_soft_tokens
from softrepa_pipeline.stage import Stage, run_stage, source_digest
from softrepa_pipeline.training import (
    ExecutionConfig,
    FitConfig,
    Job,
    Provenance,
    SamplesConfig,
    Size,
    TextCache,
    assign,
    bucket_sizes,
    configured,
    encode_latents,
    latent_store,
    launch,
    write_buckets,
)

TOKENS_FILE = "soft_tokens.safetensors"
_MODEL_SETTINGS = ("dtype", "variant", "vae", "t5", "max_sequence_length", "quantization")
_CODE = ("training", "backbones", "noising", "objectives", "soft_tokens", "randomness")

# Told where a training writes and how it is set; gives the id of the run that the tokens will name.
Watch = Callable[[Path, FitConfig, ExecutionConfig], AbstractContextManager[str]]


@dataclass(frozen=True)
class FitSettings:
    """What is trained, how, and where it runs."""

    model: ModelConfig
    fit: FitConfig
    execution: ExecutionConfig
    samples: SamplesConfig


def _unwatched(_work: Path, _fit: FitConfig, _execution: ExecutionConfig) -> AbstractContextManager[str]:
    return nullcontext("")


def fit_settings(
    model: dict[str, Any], parameters: dict[str, Any], execution: dict[str, Any], sampling: dict[str, Any]
) -> FitSettings:
    base = build(ModelConfig, model, "model")
    return FitSettings(
        base,
        configured(base.family, parameters),
        build(ExecutionConfig, execution, "execution"),
        build(SamplesConfig, sampling, "sampling"),
    )


def fit_tokens(
    pairs: dict[str, Any],
    negatives: dict[str, Any],
    model: dict[str, Any],
    parameters: dict[str, Any],
    execution: dict[str, Any],
    sampling: dict[str, Any],
    folders: dict[str, str],
    runner: dict[str, Any],
    cache: dict[str, Any],
    force: bool,
    watch: Watch = _unwatched,
) -> dict[str, Any]:
    """Train soft tokens on the mined candidates; a stopped run goes on from its last checkpoint.

    Where it has to train, it does so within `watch`, which is told the folder that checkpoints, curves, samples and
    tokens are written to.
    """
    if not pairs["has_images"]:
        raise ValueError(
            f"{pairs['folder']} holds captions without images, which can be mined but not trained on; "
            "docs/data-format.md says where a caption file's images are looked for"
        )
    settings = fit_settings(model, parameters, execution, sampling)
    model_config, config = settings.model, settings.fit
    base = source_digest(model_config.base, model_config.revision)
    inputs = {"pairs": pairs["digest"], "negatives": negatives["digest"], "model": base}
    inputs |= {name: str(getattr(model_config, name)) for name in _MODEL_SETTINGS}
    if config.start_from is not None:
        inputs["start"] = source_digest(config.start_from)
    stage = Stage("fit", Path(folders["tokens"]), inputs, config, _CODE)
    where, limit = make_runner(build(RunnerConfig, runner, "runner")), build(CacheConfig, cache, "cache")

    stores = cache_folders(folders)

    def compute() -> dict[str, Any]:
        with limited(stores, limit):
            sizes, bucket_of = _buckets(Path(pairs["folder"]), config)
            encode = partial(_encode, pairs, model_config, sizes, bucket_of, folders, where)
            latents, mirrored = encode(mirrored=False), encode(mirrored=True) if config.flip else ()
        work = stage.folder / "runs" / stage.fingerprint
        if force:
            shutil.rmtree(work, ignore_errors=True)
        buckets = work / "buckets.parquet" if config.aspect_ratio_buckets else None
        if buckets is not None:
            write_buckets(buckets, image_ids(Path(pairs["folder"])), bucket_of)
        name = Path(model_config.base).name if Path(model_config.base).is_dir() else model_config.base
        data = Path(pairs["folder"]).name, pairs["digest"]
        with watch(work, config, settings.execution) as run_id:
            job = Job(
                model=model_config,
                fit=config,
                execution=settings.execution,
                samples=settings.samples,
                latents=latents,
                mirrored=mirrored,
                buckets=None if buckets is None else str(buckets),
                texts=TextCache(folders["texts"], limit.max_gb),
                negatives=str(Path(negatives["folder"]) / "negatives.parquet"),
                folder=str(work),
                provenance=Provenance(name, base, run_id, model_config.licence, *data),
            )
            started, cpu_started = time.perf_counter(), _cpu_seconds()
            with limited(stores, limit):
                launch(job)
            result = _result(job, stage)
            result |= {"seconds": time.perf_counter() - started, "log": str(work / "metrics.jsonl")}
            result["cpu_seconds"] = _cpu_seconds() - cpu_started
        return result

    return run_stage(stage, compute, force)


def _buckets(pairs: Path, config: FitConfig) -> tuple[list[Size], np.ndarray]:
    """The sizes that images are cropped to, and which of them each image has."""
    if not config.aspect_ratio_buckets:
        return [(config.resolution, config.resolution)], np.zeros(len(image_ids(pairs)), np.int64)
    sizes = bucket_sizes(config.resolution)
    return sizes, assign(aspect_ratios(pairs), sizes, config.batch_size + config.held_out_images)


def _encode(
    pairs: dict[str, Any],
    model: ModelConfig,
    sizes: list[Size],
    bucket_of: np.ndarray,
    folders: dict[str, str],
    runner: Runner,
    mirrored: bool,
) -> tuple[str, ...]:
    """Encode what is new of the data set; the folders of its latents, one for each size."""
    ids, stores = np.array(image_ids(Path(pairs["folder"]))), []
    for bucket, size in enumerate(sizes):
        places = np.flatnonzero(bucket_of == bucket)
        store = latent_store(model, size, Path(folders["latents"]), mirrored)
        if len(places):
            read = partial(_read_some, Path(pairs["folder"]), places)
            encode_latents(model, ids[places].tolist(), read, size, store, runner, mirrored)
        stores.append(str(store.folder))
    return tuple(stores)


def _read_some(pairs: Path, places: np.ndarray, chosen: list[int]) -> Iterator[Image.Image]:
    """The images at those of these places of the table that are chosen."""
    return read_images(pairs, places[chosen].tolist())


def _result(job: Job, stage: Stage) -> dict[str, Any]:
    """The job's tokens beside the stage's result, which names them."""
    file = stage.folder / TOKENS_FILE
    partial = file.with_name(file.name + ".partial")
    shutil.copyfile(job.tokens_file, partial)
    partial.replace(file)
    tokens, _ = load_soft_tokens(file)
    return {"file": str(file), "num_parameters": tokens.num_parameters, **job.metadata, "digest": stage.fingerprint}


def _cpu_seconds() -> float:
    """Of this process and of those that it has waited for."""
    return sum(os.times()[:4])
