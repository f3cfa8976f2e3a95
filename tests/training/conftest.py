"""A small training set, settings to train on it, and jobs on disk."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from training_settings import CONFIG, EXECUTION

from softrepa_pipeline.backbones import ModelConfig
from softrepa_pipeline.inference import SamplingConfig
from softrepa_pipeline.tensor_store import TensorStore
from softrepa_pipeline.training import Job, Provenance, SamplesConfig, TrainingSet

IMAGE_IDS = [letter * 32 for letter in "abcde"]


@pytest.fixture
def negatives_file(tmp_path: Path) -> Path:
    captions = [
        ["a red circle", "two blue squares"],
        ["a green triangle"],
        ["a blue square"],
        ["a disc"],
        ["two boxes"],
    ]
    edits = [[["a blue circle"], ["three blue squares", "two red squares"]], [["a red triangle"]], [["a red square"]]]
    edits += [[[]], [["three boxes"]]]
    columns = {"captions": captions, "edits": edits, "negatives": [["a red square"]] * 4 + [[]]}
    pq.write_table(pa.table({"image_id": IMAGE_IDS, **columns}), tmp_path / "negatives.parquet")
    return tmp_path / "negatives.parquet"


@pytest.fixture
def latents() -> torch.Tensor:
    return torch.randn(5, 16, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def data(negatives_file: Path, latents: torch.Tensor) -> TrainingSet:
    return TrainingSet.read(lambda image_ids: latents, negatives_file)


@pytest.fixture
def job(negatives_file: Path, latents: torch.Tensor, sd3_folder: Path, tmp_path: Path) -> Job:
    """A training of the tiny random SD3; its folder is empty."""
    TensorStore(tmp_path / "latents").add(IMAGE_IDS, latents)
    model = ModelConfig("sd3", str(sd3_folder), max_sequence_length=0)
    samples = SamplesConfig(2.0, SamplingConfig(2, 4), num_prompts=2)
    paths = ((str(tmp_path / "latents"),), str(negatives_file), str(tmp_path / "run"))
    return Job(model, CONFIG, EXECUTION, samples, *paths, Provenance("tiny", "0", "", "none"))
