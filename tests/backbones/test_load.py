from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler

from softrepa_pipeline.backbones import Backbone, ModelConfig, encode_images, inject, load_backbone, load_vae
from softrepa_pipeline.soft_tokens import SoftTokens, SoftTokensConfig


def test_missing_and_foreign_model_folders(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no model folder at .*; set model\.base"):
        load_backbone(ModelConfig("sd3", str(tmp_path / "nowhere")))
    (tmp_path / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    with pytest.raises(ValueError, match="holds a StableDiffusionPipeline; family sd3 needs"):
        load_backbone(ModelConfig("sd3", str(tmp_path)))
    with pytest.raises(ValueError, match=r"model\.family must be one of sd15, sdxl, sd3, not 'sd9'"):
        ModelConfig("sd9", "x")


def test_a_hub_that_cannot_be_reached_is_one_clear_error() -> None:
    config = ModelConfig("sd15", "nobody/no-such-model", local_files_only=True)
    for load in (load_backbone, load_vae):
        with pytest.raises(
            FileNotFoundError, match=r"cannot load nobody/no-such-model; set model\.base to a diffusers folder"
        ):
            load(config)


def test_an_autoencoder_that_cannot_be_reached_is_named(model_folders: dict[str, Path]) -> None:
    config = ModelConfig("sd3", str(model_folders["sd3"]), vae="nobody/no-such-vae", local_files_only=True)
    for load in (load_backbone, load_vae):
        with pytest.raises(FileNotFoundError, match=r"cannot load nobody/no-such-vae; set model\.vae to a diffusers"):
            load(config)


@pytest.mark.parametrize("family", ["sd15", "sdxl", "sd3"])
def test_a_missing_component_is_named(family: str, model_folders: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(model_folders[family], tmp_path / "model")
    index = json.loads((tmp_path / "model/model_index.json").read_text())
    index["text_encoder"] = [None, None]
    (tmp_path / "model/model_index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="text_encoder"):
        load_backbone(ModelConfig(family, str(tmp_path / "model")))


def test_an_inpainting_unet_is_refused(model_folders: dict[str, Path]) -> None:
    pipeline = load_backbone(ModelConfig("sd15", str(model_folders["sd15"]))).pipeline
    pipeline.unet.register_to_config(in_channels=33)
    with pytest.raises(ValueError, match="takes 33 channels, but its autoencoder makes 16"):
        type(load_backbone(ModelConfig("sd15", str(model_folders["sd15"]))))(pipeline)


def test_everything_is_frozen_and_the_latents_are_scaled(backbone: Backbone) -> None:
    modules = [part for part in backbone.pipeline.components.values() if isinstance(part, torch.nn.Module)]
    assert len(modules) >= 3
    assert not any(parameter.requires_grad for module in modules for parameter in module.parameters())
    pixels = torch.rand(2, 3, 32, 32) * 2 - 1
    vae = backbone.pipeline.vae
    vae.register_to_config(scaling_factor=0.5)
    expected = (vae.encode(pixels).latent_dist.mean - (vae.config.shift_factor or 0)) * 0.5
    torch.testing.assert_close(backbone.encode_images(pixels), expected)


@pytest.mark.parametrize("changes", [{}, {"dtype": "bfloat16"}, {"variant": "fp16"}, {"vae": "sd15"}])
def test_the_autoencoder_alone_is_that_of_the_whole_model(
    changes: dict[str, str], model_folders: dict[str, Path]
) -> None:
    if "vae" in changes:
        changes = {"vae": str(model_folders["sd15"] / "vae")}
    config = ModelConfig("sd3", str(model_folders["sd3"]), max_sequence_length=0, **changes)
    vae, pixels = load_vae(config), torch.rand(2, 3, 32, 32) * 2 - 1
    assert not any(parameter.requires_grad for parameter in vae.parameters())
    assert torch.equal(encode_images(vae, pixels), load_backbone(config).encode_images(pixels))


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_unet_targets_lead_back_to_the_image(prediction_type: str, model_folders: dict[str, Path]) -> None:
    backbone = load_backbone(ModelConfig("sd15", str(model_folders["sd15"])))
    scheduler = backbone.pipeline.scheduler
    scheduler.register_to_config(prediction_type=prediction_type)
    latents, noise = torch.randn(3, 16, 8, 8), torch.randn(3, 16, 8, 8)
    noised = backbone.noise(latents, noise, torch.tensor([0.0, 500.9, 1000.0]))
    assert noised.timestep.tolist() == [0, 500, 999]
    torch.testing.assert_close(noised.sample, scheduler.add_noise(latents, noise, noised.timestep))
    trusted = DDIMScheduler.from_config(scheduler.config, clip_sample=False)
    trusted.set_timesteps(1000)
    for row in range(2):
        step = trusted.step(noised.target[row], int(noised.timestep[row]), noised.sample[row])
        torch.testing.assert_close(step.pred_original_sample, latents[row], rtol=1e-4, atol=1e-4)


def test_a_target_that_no_family_has_is_refused(model_folders: dict[str, Path]) -> None:
    backbone = load_backbone(ModelConfig("sd15", str(model_folders["sd15"])))
    backbone.pipeline.scheduler.register_to_config(prediction_type="flow")
    with pytest.raises(ValueError, match="prediction_type 'flow' is not one of epsilon, v_prediction, sample"):
        backbone.noise(torch.zeros(1, 16, 8, 8), torch.zeros(1, 16, 8, 8), torch.tensor([5.0]))


def test_prompts_are_those_of_the_stock_pipeline(backbone: Backbone) -> None:
    prompt = backbone.encode_prompts(["a red circle", "two blue squares"])
    assert prompt.states.shape == (2, 20, {"sd15": 96, "sdxl": 128, "sd3": 128}[backbone.family])
    assert (prompt.pooled is None) == (backbone.family == "sd15")
    assert not torch.equal(prompt.states[0], prompt.states[1])


def test_another_autoencoder_takes_the_place_of_the_base_s(model_folders: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(model_folders["sdxl"] / "vae", tmp_path / "vae")
    config = json.loads((tmp_path / "vae/config.json").read_text())
    (tmp_path / "vae/config.json").write_text(json.dumps({**config, "scaling_factor": 0.25}))
    own = load_backbone(ModelConfig("sdxl", str(model_folders["sdxl"])))
    other = load_backbone(ModelConfig("sdxl", str(model_folders["sdxl"]), vae=str(tmp_path / "vae")))
    assert other.pipeline.vae.config.scaling_factor == 0.25
    assert own.pipeline.vae.config.scaling_factor != 0.25


@pytest.mark.parametrize("family", ["sd15", "sdxl", "sd3"])
def test_weights_of_eight_bits_predict_and_train_nearly_the_same(family: str, model_folders: dict[str, Path]) -> None:
    pytest.importorskip("torchao", reason="the extra `quantization` is not installed")
    config = ModelConfig(family, str(model_folders[family]), max_sequence_length=0)
    predictions, gradients, kinds = [], [], []
    for backbone in (load_backbone(config), load_backbone(replace(config, quantization="int8"))):
        sites = backbone.sites((0,) if family == "sd3" else ("down",))
        torch.manual_seed(0)
        tokens = SoftTokens(SoftTokensConfig(sites.names, 4, sites.width, 2))
        channels = backbone.pipeline.vae.config.latent_channels
        sample = torch.randn(2, channels, 8, 8)
        noised = backbone.noise(sample, torch.randn_like(sample), torch.tensor([300.0, 700.0]))
        with inject(backbone.denoiser, sites, tokens):
            prediction = backbone.predict(noised, backbone.encode_prompts(["a red square", "two blue circles"]))
        prediction.square().sum().backward()
        predictions.append(prediction.detach())
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in tokens.parameters()]))
        kinds.append({type(parameter.data).__name__ for parameter in backbone.denoiser.parameters()})
        assert not any(parameter.requires_grad for parameter in backbone.denoiser.parameters())
    assert "Int8Tensor" in kinds[1] - kinds[0]
    for exact, small in (predictions, gradients):
        assert 0 < (small - exact).norm() < 0.1 * exact.norm()


def test_four_bits_need_cuda() -> None:
    with pytest.raises(ValueError, match="nf4 needs a CUDA device, not cpu; int8 runs everywhere"):
        ModelConfig("sd3", "somewhere", quantization="nf4")
