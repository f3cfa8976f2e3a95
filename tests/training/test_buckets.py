"""Aspect-ratio buckets: images keep their shape, and each step has images of one."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from training_settings import BATCH, CONFIG

from softrepa_pipeline.backbones import Backbone
from softrepa_pipeline.soft_tokens import load_soft_tokens
from softrepa_pipeline.tensor_store import TensorStore
from softrepa_pipeline.training import Job, TrainingSet, assign, bucket_sizes, launch, write_buckets
from softrepa_pipeline.training.buckets import latents_by_bucket
from softrepa_pipeline.training.loading import load_step

SIZES = bucket_sizes(32)
# Images in each of the three buckets: the square's five steps of four leave two, those of the tall three.
COUNTS = (22, 11, 4)
FIT = replace(CONFIG, resolution=32, aspect_ratio_buckets=True)


def shape_of(size: tuple[int, int]) -> tuple[int, int, int]:
    return 16, size[0] // 4, size[1] // 4


@pytest.fixture
def bucketed(job: Job, tmp_path: Path) -> Job:
    """The job on images in three buckets, whose latents are their number and noise."""
    bucket_of = np.repeat(np.arange(3), COUNTS)
    ids = np.array([f"{number:032x}" for number in range(len(bucket_of))])
    folders = []
    for bucket, size in enumerate(SIZES):
        own = np.flatnonzero(bucket_of == bucket)
        rows = torch.randn((len(own), *shape_of(size)), generator=torch.Generator().manual_seed(bucket))
        rows[:, 0, 0, 0] = torch.from_numpy(own)
        folders.append(str(tmp_path / f"bucket{bucket}"))
        TensorStore(Path(folders[-1])).add(ids[own].tolist(), rows)
    captions = [[f"{number % 9} red circles"] for number in range(len(ids))]
    columns = {"captions": captions, "edits": [[["a blue square"]]] * len(ids), "negatives": [["two boxes"]] * len(ids)}
    order = np.random.default_rng(0).permutation(len(ids))
    table = pa.table({"image_id": ids, **columns}).take(order)
    pq.write_table(table, tmp_path / "bucketed.parquet")
    write_buckets(tmp_path / "buckets.parquet", ids.tolist(), bucket_of)
    buckets = str(tmp_path / "buckets.parquet")
    return replace(job, fit=FIT, latents=tuple(folders), negatives=str(tmp_path / "bucketed.parquet"), buckets=buckets)


@pytest.fixture
def bucketed_data(bucketed: Job) -> TrainingSet:
    stores = [TensorStore(Path(folder)) for folder in bucketed.latents]
    buckets = Path(str(bucketed.buckets))
    return TrainingSet.read(lambda ids: latents_by_bucket(stores, buckets, ids), Path(bucketed.negatives))


def test_sizes_are_multiples_with_about_as_many_pixels_and_at_most_two_to_one() -> None:
    assert bucket_sizes(512) == [(512, 512), (640, 384), (576, 448), (448, 576), (384, 640)]
    assert SIZES == [(32, 32), (40, 24), (24, 40)]
    found = bucket_sizes(1024)
    assert {(1024, 1024), (1152, 896), (896, 1152), (1216, 832), (832, 1216), (1344, 768), (768, 1344)} <= set(found)
    for height, width in found:
        assert height % 64 == width % 64 == 0
        assert 0.85 * 1024**2 < height * width <= 1024**2
        assert 0.5 <= width / height <= 2


def test_an_image_goes_to_the_nearest_shape_that_has_enough() -> None:
    ratios = np.array([1.0, 1.1, 0.6, 0.62, 1.7, 9.0, 0.1])
    assert assign(ratios, SIZES, 1).tolist() == [0, 0, 1, 1, 2, 2, 1]
    assert assign(ratios, SIZES, 3).tolist() == [0, 0, 1, 1, 0, 0, 1]
    assert assign(ratios, SIZES, 100).tolist() == [0] * 7


def test_each_step_is_of_one_bucket_and_an_epoch_has_every_image_once_but_for_incomplete_steps(
    bucketed_data: TrainingSet,
) -> None:
    assert bucketed_data.epoch_length(FIT) == 20 + 8 + 4
    seen: Counter[int] = Counter()
    for epoch in range(40):
        rows = []
        for step in range(8 * epoch, 8 * epoch + 8):
            positions = FIT.positions_of(step)
            candidates = bucketed_data.candidates(FIT, positions)
            latents = bucketed_data.latents_at(FIT, candidates, positions)
            assert latents.shape[1:] == bucketed_data.latent_shape(FIT, positions)
            numbers = [int(bucketed_data.image_ids[row], 16) for row in candidates.rows]
            assert latents[:, 0, 0, 0].tolist() == numbers
            parts = [bucketed_data.candidates(FIT, positions, part).rows for part in (slice(0, 1), slice(1, 4))]
            assert torch.cat(parts).tolist() == candidates.rows.tolist()
            rows += numbers
        assert len(set(rows)) == len(rows) == 32
        seen.update(rows)
    # Who is left out changes from epoch to epoch.
    assert len(seen) == sum(COUNTS)
    assert {seen[number] for number in range(33, 37)} == {40}
    assert min(seen.values()) >= 15


def test_held_out_images_are_of_the_largest_bucket(bucketed_data: TrainingSet) -> None:
    kept, held_out = bucketed_data.split(replace(FIT, held_out_images=6))
    assert {int(bucketed_data.image_ids[row], 16) < 22 for row in held_out.members} == {True}
    assert sorted([*kept.members, *held_out.members]) == list(range(37))
    with pytest.raises(ValueError, match="held_out_images is 22, but there are 22 images"):
        bucketed_data.split(replace(FIT, held_out_images=22))
    with pytest.raises(ValueError, match="batch_size is 23, more than any aspect-ratio bucket has images"):
        bucketed_data.split(replace(FIT, batch_size=23))


def test_the_denoiser_sees_each_shape_and_sdxl_is_told_it(backbone: Backbone, bucketed_data: TrainingSet) -> None:
    config = replace(FIT, layers=FIT.layers if backbone.family == "sd3" else ("down",))
    told = set()
    for step in range(8):
        loaded = load_step(backbone, bucketed_data, config, torch.ones(1), step, slice(None))
        pairs = loaded.rows_at(torch.arange(2), torch.ones(1), share=True).pairs
        with torch.no_grad():
            assert pairs.predict(backbone).shape[1:] == loaded.noised.sample.shape[1:]
        if backbone.family == "sdxl":
            added = backbone.added_conditions(loaded.noised[:1], loaded.prompt[:1])  # type: ignore[attr-defined]
            told.add(tuple(added["time_ids"][0].int().tolist()))
    if backbone.family == "sdxl":
        assert told == {(height, width, 0, 0, height, width) for height, width in SIZES}


def test_two_processes_give_the_tokens_of_one(bucketed: Job, tmp_path: Path) -> None:
    tokens = []
    for num_processes in (1, 2):
        execution = replace(bucketed.execution, num_processes=num_processes)
        fit = replace(BATCH, resolution=32, aspect_ratio_buckets=True, num_steps=10, held_out_images=3)
        launched = replace(bucketed, folder=str(tmp_path / str(num_processes)), fit=fit, execution=execution)
        launch(launched)
        tokens.append(load_soft_tokens(launched.tokens_file)[0].state_dict())
    for name, value in tokens[0].items():
        assert (tokens[1][name] - value).norm() <= 1e-5 * value.norm(), name
