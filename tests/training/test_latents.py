"""Latents: encoded once for each image, whatever data set it is in, whoever encodes, whenever it is stopped."""

from __future__ import annotations

import multiprocessing
from functools import partial
from pathlib import Path

import pytest
import torch
from encoder_work import encode, encoded, killed_at_random
from PIL import Image
from store_work import keys, picture, read

from softrepa_pipeline.backbones import Backbone, ModelConfig
from softrepa_pipeline.tensor_store import TensorStore, shard_files
from softrepa_pipeline.training import encode_latents, latent_store, latents
from softrepa_pipeline.training.latents import to_pixels


@pytest.fixture
def model(sd3_folder: Path) -> ModelConfig:
    return ModelConfig("sd3", str(sd3_folder), max_sequence_length=0)


@pytest.fixture
def _small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latents, "_SHARD_IMAGES", 3)


@pytest.mark.usefixtures("_small_shards")
def test_latents_are_what_the_backbone_makes_of_the_pixels(sd3: Backbone, model: ModelConfig, tmp_path: Path) -> None:
    found = encoded(model, list(range(8)), TensorStore(tmp_path / "store"))
    expected = sd3.encode_images(torch.stack([to_pixels(picture(number), (32, 32)) for number in range(8)]))
    torch.testing.assert_close(found, expected)
    assert len(shard_files(tmp_path / "store")) == 3


def test_mirrored_latents_are_those_of_mirrored_pixels(sd3: Backbone, model: ModelConfig, tmp_path: Path) -> None:
    store = latent_store(model, (32, 32), tmp_path, mirrored=True)
    assert store.folder != latent_store(model, (32, 32), tmp_path).folder
    found = encode_latents(model, keys(4), partial(read, [4]), (32, 32), store, mirrored=True)
    expected = sd3.encode_images(to_pixels(picture(4), (32, 32)).flip(-1)[None])
    torch.testing.assert_close(found[torch.tensor([0])], expected)


@pytest.mark.usefixtures("_small_shards")
def test_a_data_set_with_some_known_images_encodes_the_others_only(
    model: ModelConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = TensorStore(tmp_path / "store")
    first = encoded(model, [0, 1, 2, 3], store)
    seen: list[int] = []

    def seen_picture(number: int) -> Image.Image:
        seen.append(number)
        return Image.new("RGB", (40, 32), (number, 0, 0))

    monkeypatch.setattr("store_work.picture", seen_picture)
    second = encoded(model, [9, 3, 1, 8, 0], store)
    assert seen == [9, 8]
    assert torch.equal(second[[1, 2, 4]], first[[3, 1, 0]])


def test_folders_differ_with_everything_that_latents_depend_on(model_folders: dict[str, Path], tmp_path: Path) -> None:
    sd3, sd15 = model_folders["sd3"], model_folders["sd15"]
    models = [
        (ModelConfig("sd3", str(sd3)), (32, 32)),
        (ModelConfig("sd3", str(sd3)), (64, 64)),
        (ModelConfig("sd3", str(sd3)), (32, 64)),
        (ModelConfig("sd3", str(sd3)), (64, 32)),
        (ModelConfig("sd3", str(sd3), dtype="bfloat16"), (32, 32)),
        (ModelConfig("sd3", str(sd3), variant="fp16"), (32, 32)),
        (ModelConfig("sd3", str(sd3), vae=str(sd15 / "vae")), (32, 32)),
        (ModelConfig("sd3", "stabilityai/sd3"), (32, 32)),
        (ModelConfig("sd3", "stabilityai/sd3", revision="main"), (32, 32)),
    ]
    folders = [latent_store(*each, tmp_path).folder for each in models]
    assert len(set(folders)) == len(folders)
    # What they do not depend on: the rest of the base, and how it is run.
    same = ModelConfig("sdxl", str(sd3), device="cuda", t5=False, licence="mine")
    assert latent_store(same, (32, 32), tmp_path).folder == folders[0]


@pytest.mark.usefixtures("_small_shards")
def test_processes_encode_what_one_does(model: ModelConfig, tmp_path: Path) -> None:
    one, two = TensorStore(tmp_path / "one/store"), TensorStore(tmp_path / "two/store")
    numbers = list(range(8))
    assert torch.equal(encoded(model, numbers, one), encoded(model, numbers, two, 2))
    assert [file.name for file in shard_files(one.folder)] == [file.name for file in shard_files(two.folder)]


@pytest.mark.parametrize("num_kills", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_killed_at_any_moment_encoding_ends_with_the_same_files(
    model: ModelConfig, tmp_path: Path, processes: multiprocessing.context.ForkServerContext, num_kills: int
) -> None:
    killed_at_random(processes, partial(encode, model=model), tmp_path, num_kills, num_files=12)
