from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn.functional import scaled_dot_product_attention
from training_settings import BATCH, CONFIG, EXECUTION

from softrepa_pipeline.backbones import Backbone, ModelConfig, inject, open_model
from softrepa_pipeline.tensor_store import TensorStore
from softrepa_pipeline.training import ExecutionConfig, FitConfig, TrainingSet, encode_latents, fit, fit_config
from softrepa_pipeline.training.estimate import Estimate, _flop, _step_data, estimate, latent_shape
from softrepa_pipeline.training.initial import initial_tokens
from softrepa_pipeline.training.methods import METHODS
from softrepa_pipeline.training.pair_engine import accumulate, choose_plan


def small(**changes: object) -> FitConfig:
    """Settings for the tiny models, whose images have 32 pixels a side."""
    return replace(CONFIG, resolution=32, **changes)  # type: ignore[arg-type]


def without_weights(folder: Path, target: Path) -> Path:
    """A copy of a model folder of which only the configuration is left."""
    shutil.copytree(folder, target, ignore=shutil.ignore_patterns("*.safetensors"))
    return target


def test_operations_are_those_of_a_hand_count() -> None:
    linear = nn.Linear(3, 5).requires_grad_(False)
    rows = torch.randn(7, 3, requires_grad=True)
    product = 2 * 7 * 3 * 5
    assert _flop(lambda: linear(rows)) == product
    assert _flop(lambda: linear(rows).sum().backward()) == 2 * product  # the input's gradient alone: weights are frozen
    convolution, images = nn.Conv2d(2, 4, 3, padding=1), torch.randn(1, 2, 6, 6)
    assert _flop(lambda: convolution(images)) == 2 * (6 * 6 * 4) * (2 * 3 * 3)
    query, key = torch.randn(1, 2, 8, 4), torch.randn(1, 2, 5, 4)
    assert _flop(lambda: scaled_dot_product_attention(query, key, key)) == 2 * (2 * 2 * 8 * 5 * 4)


@pytest.mark.parametrize("max_pairs", [256, 2])
@pytest.mark.parametrize("objective", ["softrepa", "agsm", "dsm"])
def test_a_step_s_operations_are_those_that_the_pair_engine_does(sd3: Backbone, objective: str, max_pairs: int) -> None:
    config = small(objective=objective)
    found = estimate(sd3, config, ExecutionConfig(max_pairs_in_memory=max_pairs), 100)
    assert found.plan == choose_plan(config, config.batch_size, max_pairs)

    sites, shape = sd3.sites(config.layers), latent_shape(sd3, config.resolution)
    method = METHODS[objective](initial_tokens(sd3, sites, config, shape), config)
    with inject(sd3.denoiser, sites, method.injected):
        text_of = torch.arange(config.num_pairs).view(config.batch_size, -1)
        counted = _flop(lambda: _step_data(sd3, shape, text_of))
        step = _step_data(sd3, shape, text_of)
        for images in torch.arange(config.batch_size).split(found.plan.rows_at_once):
            rows = step.rows_at(images, torch.ones(1), share=False)
            counted += _flop(lambda rows=rows: accumulate(sd3, method, rows, found.plan, config.batch_size))
    assert found.step_flop == counted


def test_calibration_and_validation_are_in_the_whole(sd3: Backbone) -> None:
    config = small(num_steps=10)
    flop = estimate(sd3, config, EXECUTION, 100).flop
    calibrating = 20 * config.num_pairs * (flop.forward + flop.caption)
    validating = 3 * 8 * 4 * config.num_candidates * flop.forward  # after steps 4, 8 and 10, at four levels
    for held_out, extra in ((0, 0), (8, validating)):
        found = estimate(sd3, replace(config, held_out_images=held_out, validation_steps=4), EXECUTION, 100)
        assert found.total_flop == 10 * found.step_flop + calibrating + extra


def test_processes_share_images_and_each_encodes_the_captions_that_compete_in_all(sd3: Backbone) -> None:
    config = replace(BATCH, resolution=32)
    one, two = (estimate(sd3, config, replace(EXECUTION, num_processes=count), 100) for count in (1, 2))
    assert (one.plan.rows_at_once, two.plan.rows_at_once) == (4, 2)
    assert two.step_flop - one.step_flop == config.batch_size * one.flop.caption


def test_memory_and_time_are_measured_where_the_model_runs(backbone: Backbone) -> None:
    config = small(layers=(0, 1) if backbone.family == "sd3" else ("down",))
    found = estimate(backbone, config, EXECUTION, 100)
    modules = [part for part in backbone.pipeline.components.values() if isinstance(part, nn.Module)]
    assert found.weight_bytes == 4 * sum(parameter.numel() for part in modules for parameter in part.parameters())
    assert found.activation_bytes == 12 * found.pair_bytes > 0
    assert found.peak_bytes is not None
    assert found.step_seconds is not None
    assert found.total_seconds is not None
    assert found.total_seconds > found.num_steps * found.step_seconds > 0


@pytest.mark.parametrize("family", ["sd15", "sdxl", "sd3"])
def test_without_weights_the_counts_are_the_same(family: str, model_folders: dict[str, Path], tmp_path: Path) -> None:
    config = small(layers=(0, 1) if family == "sd3" else ("down",))
    model = ModelConfig(family, str(model_folders[family]), max_sequence_length=0)
    bare = replace(model, base=str(without_weights(model_folders[family], tmp_path / family)))
    real, counted = (estimate(open_model(one), config, EXECUTION, 100) for one in (model, bare))
    # The first of two pairs has a few indices that the second shares.
    assert counted.pair_bytes == pytest.approx(real.pair_bytes, rel=1e-4)
    assert counted == replace(real, pair_bytes=counted.pair_bytes, peak_bytes=None, step_seconds=None)
    assert counted.total_seconds is None


def test_a_model_whose_device_is_not_here_is_counted(model_folders: dict[str, Path]) -> None:
    if torch.cuda.is_available():
        pytest.skip("every device is here")
    model = ModelConfig("sdxl", str(model_folders["sdxl"]), dtype="bfloat16", device="cuda")
    model = replace(model, vae=str(model_folders["sdxl"] / "vae"))
    assert estimate(open_model(model), small(layers=("down",)), EXECUTION, 100).step_seconds is None


def test_the_public_model_takes_what_was_counted_for_it(model_folders: dict[str, Path], tmp_path: Path) -> None:
    found = published_sd15(model_folders["sd15"], tmp_path / "sd15")
    assert found.num_steps == 59_144
    assert found.plan.pairs_at_once == 16
    # Independent counts: 2 × multiply-adds with tokens in all down blocks at 512 pixels, 79,872 trained numbers.
    assert found.flop.forward / 1e12 == pytest.approx(0.803, abs=0.001)
    assert found.flop.both / 1e12 == pytest.approx(1.665, abs=0.001)
    assert found.pair_bytes / 2**30 == pytest.approx(0.69, abs=0.005)
    assert found.token_bytes == 79_872 * 4 * 4
    assert found.latent_bytes == 118_287 * 4 * 64 * 64 * 2


def published_sd15(folder: Path, target: Path) -> Estimate:
    """The plan of the published training with SD1.5's UNet and latents in full size, of which nothing is allocated."""
    without_weights(folder, target)
    write = {
        "unet": {"_class_name": "UNet2DConditionModel", "sample_size": 64, "cross_attention_dim": 768},
        "vae": {"latent_channels": 4, "block_out_channels": [32] * 4, "norm_num_groups": 32}
        | {"down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4},
        "text_encoder": {"hidden_size": 768, "num_attention_heads": 12, "max_position_embeddings": 77},
        "tokenizer": {"model_max_length": 77},
    }
    for part, changes in write.items():
        file = target / part / ("tokenizer_config.json" if part == "tokenizer" else "config.json")
        kept = {} if part == "unet" else json.loads(file.read_text())
        file.write_text(json.dumps({**kept, **changes}))
    backbone = open_model(ModelConfig("sd15", str(target), dtype="bfloat16"))
    return estimate(backbone, fit_config("published", "sd15", "softrepa", {}), ExecutionConfig(), 118_287)


@pytest.mark.parametrize("objective", ["softrepa", "agsm"])
def test_files_have_the_size_that_was_told(
    sd3: Backbone, sd3_folder: Path, data: TrainingSet, objective: str, tmp_path: Path
) -> None:
    config = small(objective=objective, num_buckets=500, num_steps=3)  # so large that headers are no matter
    found = estimate(sd3, config, EXECUTION, 5)
    fit(sd3, data, config, tmp_path / "run", replace(EXECUTION, checkpoint_steps=1))
    checkpoints = list((tmp_path / "run").glob("step-*.safetensors"))
    assert len(checkpoints) == 2
    for file in checkpoints:
        assert 3 * file.stat().st_size == pytest.approx(found.checkpoint_bytes, rel=0.02)

    images = [Image.new("RGB", (48, 40), (index * 40, 0, 0)) for index in range(5)]
    store, model = TensorStore(tmp_path / "latents"), ModelConfig("sd3", str(sd3_folder), max_sequence_length=0)
    ids = [letter * 32 for letter in "abcde"]
    encode_latents(model, ids, lambda places: [images[place] for place in places], (config.resolution,) * 2, store)
    (file,) = (tmp_path / "latents").iterdir()
    assert file.stat().st_size == pytest.approx(found.latent_bytes, rel=0.02)


def test_captions_that_are_kept_cost_nothing_in_a_step(sd3: Backbone) -> None:
    config, kept = small(num_steps=10), replace(EXECUTION, text_cache=True)
    without, found = estimate(sd3, config, EXECUTION, 100), estimate(sd3, config, kept, 100, num_captions=30)
    assert without.caption_bytes == 0
    assert found.caption_bytes * found.num_captions == 30 * 4 * (20 * 128 + 128)
    num_scored = 10 * config.num_pairs + 20 * config.num_pairs  # by steps and calibration
    assert without.total_flop - found.total_flop == (num_scored - 30) * found.flop.caption


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (ModelConfig("sd3", "nobody/nothing"), "nobody/nothing is not on this machine: set model.base to a diffusers"),
        (ModelConfig("sd3", "/none"), "no model folder at /none"),
    ],
)
def test_a_model_that_is_not_here_is_named(model: ModelConfig, message: str) -> None:
    with pytest.raises(FileNotFoundError, match=message):
        open_model(model)


def test_a_folder_of_another_family_is_refused(model_folders: dict[str, Path], tmp_path: Path) -> None:
    folder = without_weights(model_folders["sd15"], tmp_path / "sd15")
    with pytest.raises(ValueError, match="sd15 holds a StableDiffusionPipeline; family sd3 needs"):
        open_model(ModelConfig("sd3", str(folder)))


def test_images_must_be_left_to_train_on(sd3: Backbone) -> None:
    with pytest.raises(ValueError, match="held_out_images is 8, but there are 8 images"):
        estimate(sd3, small(held_out_images=8), EXECUTION, 8)
