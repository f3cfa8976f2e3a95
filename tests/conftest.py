"""Shared fixtures: tiny random models of every family and a small rendered world."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import mlflow
import pytest
import torch
from project_runs import copy_project
from torch import nn

from softrepa_pipeline.backbones import Backbone, ModelConfig, load_backbone
from softrepa_pipeline.shapes.base_models import write_folder
from softrepa_pipeline.shapes.dataset import WorldConfig, write_world
from softrepa_pipeline.shapes.tiny_models import (
    build_autoencoder,
    build_clip,
    build_sd3_transformer,
    build_sd15_unet,
    build_sdxl_unet,
    build_text_encoder,
    build_tokenizer,
    text_tower,
)


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def _random_modules(family: str) -> tuple[nn.ModuleDict, object]:
    torch.manual_seed(0)
    tokenizer = build_tokenizer(["a red circle", "two blue squares left of a green triangle"])
    first, second = build_text_encoder(tokenizer), build_text_encoder(tokenizer)
    if family == "sd15":
        return nn.ModuleDict({"unet": build_sd15_unet(), "text_encoder": text_tower(build_clip(tokenizer))}), tokenizer
    if family == "sdxl":
        encoders = {"text_encoder": text_tower(first), "text_encoder_2": second}
        return nn.ModuleDict({"unet": build_sdxl_unet(), **encoders}), tokenizer
    transformer = build_sd3_transformer()
    # A fresh MMDiT's last layer is zero: without noise in the weights nothing would depend on the text.
    with torch.no_grad():
        for parameter in transformer.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return nn.ModuleDict({"transformer": transformer, "text_encoder": first, "text_encoder_2": second}), tokenizer


@pytest.fixture(scope="session")
def model_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A diffusers folder with random weights for each family."""
    folders = {}
    for family in ("sd15", "sdxl", "sd3"):
        modules, tokenizer = _random_modules(family)
        autoencoder = build_autoencoder()
        if family != "sd3":
            autoencoder.register_to_config(shift_factor=None)
        folders[family] = tmp_path_factory.mktemp("models") / family
        write_folder(family, modules, autoencoder, tokenizer, folders[family])  # type: ignore[arg-type]
    return folders


def load(folder: Path, family: str) -> Backbone:
    return load_backbone(ModelConfig(family, str(folder), max_sequence_length=0))


@pytest.fixture
def sd3_folder(model_folders: dict[str, Path]) -> Path:
    return model_folders["sd3"]


@pytest.fixture
def sd3(sd3_folder: Path) -> Backbone:
    return load(sd3_folder, "sd3")


@pytest.fixture(params=["sd15", "sdxl", "sd3"])
def backbone(request: pytest.FixtureRequest, model_folders: dict[str, Path]) -> Backbone:
    """A tiny random model of each family in turn."""
    return load(model_folders[request.param], request.param)


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small embedded world on disk."""
    folder = tmp_path_factory.mktemp("world")
    write_world(WorldConfig(48, 4, 6), folder)
    return folder


@pytest.fixture(scope="session")
def processes() -> Iterator[multiprocessing.context.ForkServerContext]:
    """Real processes that start fast: they fork from one that has imported everything."""
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"
    context = multiprocessing.get_context("forkserver")
    sd3 = "diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3"
    ours = ("pipelines.mine.nodes", "training.job")
    context.set_forkserver_preload([*(f"softrepa_pipeline.{name}" for name in ours), sd3])
    yield context
    if before is None:
        del os.environ["OMP_NUM_THREADS"]
    else:
        os.environ["OMP_NUM_THREADS"] = before


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An experiment in a real MLflow store, which is the tracking store until the module's tests are done."""
    folder = tmp_path_factory.mktemp("store")
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(f"sqlite:///{folder / 'mlflow.db'}")
    yield mlflow.create_experiment("store", artifact_location=(folder / "artifacts").as_uri())
    mlflow.set_tracking_uri(before)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of a megabyte."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(folder)], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip(f"no small disk can be mounted here: {mounted.stderr.decode().strip()}")
    yield folder
    # Tensors that were read may still be mapped.
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A copy of the project without anything that a run has written."""
    return copy_project(tmp_path / "project")
