"""Soft tokens in stock diffusers pipelines, beside what else users put into them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from diffusers import (
    AutoPipelineForImage2Image,
    ControlNetModel,
    DiffusionPipeline,
    EulerAncestralDiscreteScheduler,
    StableDiffusionControlNetPipeline,
)
from peft import LoraConfig
from PIL import Image

from softrepa_pipeline import load_pipeline
from softrepa_pipeline.backbones import ModelConfig, asking, load_backbone
from softrepa_pipeline.inference import Strength
from softrepa_pipeline.soft_tokens import SoftTokens, SoftTokensConfig, save_soft_tokens

PROMPT = "two blue squares left of a green triangle"
WIDTHS = {"sd15": 96, "sdxl": 128, "sd3": 128}


def tokens_file(folder: Path, family: str) -> Path:
    layers = ("0", "2") if family == "sd3" else ("down.0", "mid.0")
    tokens = SoftTokens(SoftTokensConfig(layers, 4, WIDTHS[family], 10), torch.Generator().manual_seed(0))
    with torch.no_grad():
        tokens.base.mul_(50)
    save_soft_tokens(tokens, folder / f"{family}.safetensors", {"family": family})
    return folder / f"{family}.safetensors"


def picture(pipeline: DiffusionPipeline, family: str, **options: object) -> np.ndarray:
    if family == "sd3":
        options["max_sequence_length"] = 0
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(3)
    steps = {"num_inference_steps": 3, "guidance_scale": 3.0}
    return pipeline(PROMPT, generator=generator, output_type="np", **{**steps, **options}).images[0]


@pytest.fixture(params=["sd15", "sdxl", "sd3"])
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def base(family: str, model_folders: dict[str, Path]) -> np.ndarray:
    return picture(load_backbone(ModelConfig(family, str(model_folders[family]))).pipeline, family)


def test_the_pipeline_is_stock_and_its_handle_restores_the_base(
    family: str, base: np.ndarray, model_folders: dict[str, Path], tmp_path: Path
) -> None:
    file = tokens_file(tmp_path, family)
    pipeline = load_pipeline(model_folders[family], file)
    assert type(pipeline).__module__.startswith("diffusers.")
    soft = picture(pipeline, family)
    assert (soft != base).any()
    np.testing.assert_array_equal(picture(load_pipeline(model_folders[family], file), family), soft)
    pipeline.soft_tokens.strength = 0.0
    np.testing.assert_array_equal(picture(pipeline, family), base)
    pipeline.soft_tokens.strength = 1.0
    pipeline.save_pretrained(tmp_path / "saved")
    np.testing.assert_array_equal(picture(load_pipeline(tmp_path / "saved", file), family), soft)
    pipeline.soft_tokens.remove()
    np.testing.assert_array_equal(picture(pipeline, family), base)


def test_other_schedulers_image_to_image_and_no_guidance(
    family: str, model_folders: dict[str, Path], tmp_path: Path
) -> None:
    pipeline = load_pipeline(model_folders[family], tokens_file(tmp_path, family))
    start = Image.fromarray(np.full((32, 32, 3), 90, dtype=np.uint8))
    editing = AutoPipelineForImage2Image.from_pipe(pipeline)
    calls = [
        lambda: picture(pipeline, family, guidance_scale=1.0),
        lambda: picture(pipeline, family, negative_prompt="a red circle"),
        lambda: picture(editing, family, image=start, strength=0.7),
    ]
    if family != "sd3":
        pipeline.scheduler = EulerAncestralDiscreteScheduler.from_config(pipeline.scheduler.config)
        calls.append(lambda: picture(pipeline, family))
    soft = [call() for call in calls]
    pipeline.soft_tokens.remove()
    for with_tokens, call in zip(soft, calls, strict=True):
        assert np.isfinite(with_tokens).all()
        assert (with_tokens != call()).any()


def test_beside_a_lora(family: str, model_folders: dict[str, Path], tmp_path: Path) -> None:
    pipeline = load_pipeline(model_folders[family], tokens_file(tmp_path, family))
    soft = picture(pipeline, family)
    denoiser = pipeline.transformer if family == "sd3" else pipeline.unet
    denoiser.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_k"], init_lora_weights="gaussian"))
    with torch.no_grad():
        for name, parameter in denoiser.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.1)
    both = picture(pipeline, family)
    assert (both != soft).any()
    pipeline.soft_tokens.remove()
    assert (picture(pipeline, family) != both).any()
    denoiser.disable_adapters()
    pipeline.soft_tokens.strength = 1.0
    np.testing.assert_array_equal(picture(pipeline, family), soft)


def test_beside_accelerate_s_offloading_hooks(
    family: str, base: np.ndarray, model_folders: dict[str, Path], tmp_path: Path
) -> None:
    """What `enable_model_cpu_offload` and `enable_sequential_cpu_offload` do to a model, with the CPU as the device."""
    pipeline = load_pipeline(model_folders[family], tokens_file(tmp_path, family))
    soft = picture(pipeline, family)
    denoiser = pipeline.transformer if family == "sd3" else pipeline.unet
    add_hook_to_module(
        denoiser, AlignDevicesHook(execution_device="cpu", io_same_device=True, offload=True), append=True
    )
    np.testing.assert_array_equal(picture(pipeline, family), soft)
    pipeline.soft_tokens.strength = 0.5
    half = picture(pipeline, family)
    assert (half != soft).any()
    pipeline.soft_tokens.remove()
    np.testing.assert_array_equal(picture(pipeline, family), base)


def test_a_control_net_keeps_its_own_text(model_folders: dict[str, Path], tmp_path: Path) -> None:
    plain = load_pipeline(model_folders["sd15"], tokens_file(tmp_path, "sd15"))
    control = ControlNetModel.from_unet(plain.unet, conditioning_embedding_out_channels=(16, 32, 64))
    # A fresh control net is silent: its last layers are zero.
    for parameter in control.controlnet_mid_block.parameters():
        torch.nn.init.normal_(parameter, 0, 0.1)
    lengths: list[int] = []
    control.register_forward_pre_hook(
        lambda _, args, kwargs: lengths.append(kwargs["encoder_hidden_states"].shape[1]), with_kwargs=True
    )
    pipeline = StableDiffusionControlNetPipeline(**plain.components, controlnet=control, requires_safety_checker=False)
    image = Image.fromarray(np.full((32, 32, 3), 200, dtype=np.uint8))
    soft = picture(pipeline, "sd15", image=image)
    assert (soft != picture(plain, "sd15")).any()
    assert set(lengths) == {20}, "the tokens stand in the base only"
    plain.soft_tokens.remove()
    assert (picture(pipeline, "sd15", image=image) != soft).any()


def test_a_pipeline_s_call_asks_for_the_conditional_branch_alone(
    family: str, base: np.ndarray, model_folders: dict[str, Path], tmp_path: Path
) -> None:
    file = tokens_file(tmp_path, family)
    with pytest.raises(ValueError, match=r"calls ask for the conditional branch alone themselves: docs/using-tokens"):
        load_pipeline(model_folders[family], file, Strength(conditional_only=True))
    pipeline = load_pipeline(model_folders[family], file, Strength(timestep_range=(500.0, 1000.0)))
    early = picture(pipeline, family)
    kwargs_name = "joint_attention_kwargs" if family == "sd3" else "cross_attention_kwargs"
    one_branch = picture(pipeline, family, **{kwargs_name: asking(share=torch.tensor([0.0, 1.0]))})
    neither = picture(pipeline, family, **{kwargs_name: asking(share=torch.tensor([0.0, 0.0]))})
    assert len({image.tobytes() for image in (base, early, one_branch)}) == 3
    np.testing.assert_array_equal(neither, base)
