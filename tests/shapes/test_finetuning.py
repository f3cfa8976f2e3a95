"""Fine-tuned copies of a base: what changes, what stays, and that LoRAs are diffusers' own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import load
from diffusers import StableDiffusion3Pipeline
from safetensors.torch import load_file

from softrepa_pipeline import load_pipeline
from softrepa_pipeline.backbones import Backbone
from softrepa_pipeline.shapes import finetuning, pretraining
from softrepa_pipeline.shapes.finetuning import LORA_FOLDER, FineTuning, fine_tune
from softrepa_pipeline.soft_tokens import SoftTokens, SoftTokensConfig, save_soft_tokens

TINY: dict[str, Any] = {"images": 8, "batch_size": 2, "pool_images": 8, "learning_rate": 0.02}
CASES = [("sd3", "full"), ("sd3", "lora"), ("sd3", "dpo"), ("sdxl", "dpo"), ("sd15", "lora")]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """Of every part, by `part/name`."""
    files = sorted(folder.glob("*/*.safetensors"))
    return {f"{file.parent.name}/{name}": own for file in files for name, own in load_file(file).items()}


@pytest.mark.parametrize(("family", "kind"), CASES)
def test_a_copy_differs_where_it_was_trained(
    family: str, kind: str, model_folders: dict[str, Path], tmp_path: Path
) -> None:
    fine_tune(family, model_folders[family], FineTuning(kind, **TINY), tmp_path / "copy")
    before, after = weights(model_folders[family]), weights(tmp_path / "copy")
    after = {name: own for name, own in after.items() if not name.startswith(LORA_FOLDER)}
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert any("to_q" in name for name in changed)
    parts = {name.partition("/")[0] for name in changed}
    denoiser = "transformer" if family == "sd3" else "unet"
    assert parts == ({denoiser, "text_encoder", "text_encoder_2"} if kind == "full" else {denoiser})
    if kind == "lora":
        assert all(".to_" in name for name in changed)
    assert not list(tmp_path.glob("*.partial"))


class _Stopped(Exception):
    pass


@pytest.mark.parametrize("kind", ["lora", "dpo"])
def test_a_stopped_tuning_ends_as_an_undisturbed_one_and_is_not_done_twice(
    kind: str, sd3_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(finetuning, "_CHECKPOINT_STEPS", 2)
    tuning = FineTuning(kind, **TINY)
    fine_tune("sd3", sd3_folder, tuning, tmp_path / "whole")
    save = pretraining._save_state

    def stop_after_first(*arguments: object) -> None:
        save(*arguments)  # type: ignore[arg-type]
        raise _Stopped

    with monkeypatch.context() as patch:
        patch.setattr(pretraining, "_save_state", stop_after_first)
        with pytest.raises(_Stopped):
            fine_tune("sd3", sd3_folder, tuning, tmp_path / "stopped")
        assert not (tmp_path / "stopped").exists()
    fine_tune("sd3", sd3_folder, tuning, tmp_path / "stopped")
    whole, resumed = weights(tmp_path / "whole"), weights(tmp_path / "stopped")
    assert all(torch.equal(own, resumed[name]) for name, own in whole.items())
    with monkeypatch.context() as patch:
        patch.setattr(finetuning, "run_loop", stop_after_first)
        fine_tune("sd3", sd3_folder, tuning, tmp_path / "stopped")


def picture(pipeline: StableDiffusion3Pipeline) -> np.ndarray:
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(3)
    options = {"num_inference_steps": 3, "guidance_scale": 3.0, "max_sequence_length": 0}
    return pipeline("a red circle", generator=generator, output_type="np", **options).images[0]


def test_the_lora_loads_beside_tokens_and_strength_0_is_the_lora_alone(sd3_folder: Path, tmp_path: Path) -> None:
    fine_tune("sd3", sd3_folder, FineTuning("lora", **TINY), tmp_path / "copy")
    tokens = SoftTokens(SoftTokensConfig(("0", "2"), 4, 128, 10), torch.Generator().manual_seed(0))
    with torch.no_grad():
        tokens.base.mul_(50)
    save_soft_tokens(tokens, tmp_path / "tokens.safetensors", {"family": "sd3"})

    without = {"text_encoder_3": None, "tokenizer_3": None}
    stock = StableDiffusion3Pipeline.from_pretrained(sd3_folder, dtype=torch.float32, **without)
    base = picture(stock)
    stock.load_lora_weights(tmp_path / "copy" / LORA_FOLDER)
    alone = picture(stock)
    assert np.abs(alone - base).max() > 0.01
    np.testing.assert_allclose(picture(load(tmp_path / "copy", "sd3").pipeline), alone, atol=0.02)

    both = load_pipeline(sd3_folder, tmp_path / "tokens.safetensors")
    both.load_lora_weights(tmp_path / "copy" / LORA_FOLDER)
    assert np.abs(picture(both) - alone).max() > 0.01
    both.soft_tokens.strength = 0.0
    np.testing.assert_array_equal(picture(both), alone)


def test_preference_tuning_fits_the_true_image_better_than_the_faulty_one(sd3_folder: Path, tmp_path: Path) -> None:
    tuning = FineTuning("dpo", **{**TINY, "images": 200, "batch_size": 8, "learning_rate": 1e-3})
    fine_tune("sd3", sd3_folder, tuning, tmp_path / "copy")
    items, worse = finetuning._draw_preferences(tuning)
    captions = [item.caption for item in items]
    before, after = load(sd3_folder, "sd3"), load(tmp_path / "copy", "sd3")

    def change(scenes: list[Any]) -> float:
        latents = finetuning._latents(before.pipeline, scenes, tuning)
        return _error(after, latents, captions) - _error(before, latents, captions)

    assert change([item.scene for item in items]) < change(worse)


@torch.no_grad()
def _error(backbone: Backbone, latents: torch.Tensor, captions: list[str]) -> float:
    """The mean denoising error of images with captions, at one noise of several levels."""
    prompt, errors = backbone.encode_prompts(captions), []
    for level in (400.0, 600.0, 800.0):
        noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(int(level)))
        noised = backbone.noise(latents, noise, torch.full((len(latents),), level))
        errors.append(float((backbone.predict(noised, prompt) - noised.target).square().mean()))
    return float(np.mean(errors))
