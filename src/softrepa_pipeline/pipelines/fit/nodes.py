"""Node of the training stage: soft tokens on a frozen base, tracked while they train."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from softrepa_pipeline import tracking
from softrepa_pipeline.backbones import ModelConfig
from softrepa_pipeline.caches import CacheConfig, cache_folders, limited
from softrepa_pipeline.config import build
from softrepa_pipeline.ingestion import aspect_ratios, image_ids, read_images
from softrepa_pipeline.pipelines.fit.follow import following
from softrepa_pipeline.runners import Runner, RunnerConfig, make_runner
from softrepa_pipeline.soft_tokens import load_soft_tokens
from softrepa_pipeline.stage import Stage, run_stage, source_digest, write_json
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

_MODEL_SETTINGS = ("dtype", "variant", "vae", "t5", "max_sequence_length", "quantization")
_CODE = ("training", "backbones", "noising", "objectives", "soft_tokens", "randomness")


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
) -> dict[str, Any]:
    """Train soft tokens on the mined candidates; a stopped run goes on from its last checkpoint."""
    if not pairs["has_images"]:
        raise ValueError(
            f"{pairs['folder']} holds captions without images, which can be mined but not trained on; "
            "docs/data-format.md says where a caption file's images are looked for"
        )
    model_config = build(ModelConfig, model, "model")
    config = configured(model_config.family, parameters)
    execution_config = build(ExecutionConfig, execution, "execution")
    samples = build(SamplesConfig, sampling, "sampling")
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
        with tracking.nested_run("fit") as run:
            run.log_params({f"fit.{key}": value for key, value in asdict(config).items()})
            run.log_params({f"execution.{key}": value for key, value in asdict(execution_config).items()})
            _link_to_interrupted(run, work)
            name = Path(model_config.base).name if Path(model_config.base).is_dir() else model_config.base
            data = Path(pairs["folder"]).name, pairs["digest"]
            provenance = Provenance(name, base, run.run_id or "", model_config.licence, *data)
            job = Job(
                model=model_config,
                fit=config,
                execution=execution_config,
                samples=samples,
                latents=latents,
                mirrored=mirrored,
                buckets=None if buckets is None else str(buckets),
                texts=TextCache(folders["texts"], limit.max_gb),
                negatives=str(Path(negatives["folder"]) / "negatives.parquet"),
                folder=str(work),
                provenance=provenance,
            )
            started, cpu_started = time.perf_counter(), _cpu_seconds()
            with following(run, work), limited(stores, limit):
                launch(job)
            result = _result(job, stage)
            result |= {"seconds": time.perf_counter() - started, "log": str(work / "metrics.jsonl")}
            result["cpu_seconds"] = _cpu_seconds() - cpu_started
            run.log_artifact(Path(result["file"]), "tokens")
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
    file = stage.folder / "soft_tokens.safetensors"
    partial = file.with_name(file.name + ".partial")
    shutil.copyfile(job.tokens_file, partial)
    partial.replace(file)
    tokens, _ = load_soft_tokens(file)
    return {"file": str(file), "num_parameters": tokens.num_parameters, **job.metadata, "digest": stage.fingerprint}


def _cpu_seconds() -> float:
    """Of this process and of those that it has waited for."""
    return sum(os.times()[:4])


def _link_to_interrupted(run: tracking.NestedRun, work: Path) -> None:
    """Tag a resumed run with the one it goes on from, then leave its own id for the next."""
    note = work / "run.json"
    if note.is_file() and any(work.glob("step-*.json")):
        run.set_tag("softrepa.resumed_from", json.loads(note.read_text())["run_id"])
    write_json(note, {"run_id": run.run_id})
