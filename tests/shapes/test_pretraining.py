from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from softrepa_pipeline.backbones import ModelConfig, load_backbone
from softrepa_pipeline.mining import ClipEncoder
from softrepa_pipeline.shapes import pretraining
from softrepa_pipeline.shapes.base_models import PretrainConfig, pretrain
from softrepa_pipeline.shapes.denoisers import FAMILIES, Teacher, denoising_loss, train_denoiser
from softrepa_pipeline.shapes.pretraining import LoopSettings
from softrepa_pipeline.shapes.tiny_models import build_sd3_transformer, build_text_encoder, build_tokenizer

SETTINGS = LoopSettings(images=16, batch_size=4, learning_rate=1e-3, checkpoint_steps=2)
CAPTIONS = ["a red circle", "two blue squares", "a green triangle", "a red square"]


def train(state_file: Path, settings: LoopSettings = SETTINGS) -> nn.ModuleDict:
    tokenizer = build_tokenizer(CAPTIONS)
    torch.manual_seed(0)
    encoders = {name: build_text_encoder(tokenizer) for name in ("text_encoder", "text_encoder_2")}
    modules = nn.ModuleDict({"transformer": build_sd3_transformer(), **encoders})
    latents = torch.randn(4, 16, 8, 8, generator=torch.Generator().manual_seed(1))
    tokens = pretraining.tokenize(tokenizer, CAPTIONS)
    null_tokens = pretraining.tokenize(tokenizer, [""])[0]
    loss = denoising_loss(FAMILIES["sd3"], modules, latents, tokens, null_tokens, settings)
    train_denoiser(modules, loss, settings, state_file)
    return modules


class _Stopped(Exception):
    pass


def test_a_stopped_base_training_ends_as_an_undisturbed_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    undisturbed = train(tmp_path / "whole.pt")
    save, saved = pretraining._save_state, []

    def stop_after_first(*arguments: object) -> None:
        save(*arguments)  # type: ignore[arg-type]
        saved.append(True)
        raise _Stopped

    with monkeypatch.context() as patch:
        patch.setattr(pretraining, "_save_state", stop_after_first)
        with pytest.raises(_Stopped):
            train(tmp_path / "stopped.pt")
    assert len(saved) == 1
    resumed = train(tmp_path / "stopped.pt")
    for name, value in undisturbed.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_base_training_learns_and_leaves_the_pooled_text_silent(tmp_path: Path) -> None:
    modules = train(tmp_path / "state.pt", replace(SETTINGS, images=40))
    assert not modules["text_encoder"].text_projection.weight.any()
    assert modules["transformer"].proj_out.weight.abs().max() > 0


def test_the_vocabulary_is_the_same_whenever_it_is_built() -> None:
    states = [build_tokenizer(CAPTIONS).backend_tokenizer.to_str() for _ in range(4)]
    assert len(set(states)) == 1
    assert [len(ids) for ids in build_tokenizer(CAPTIONS)(["red square", "green triangle"]).input_ids] == [4, 4]


@pytest.mark.slow
def test_from_nothing_to_folders_that_load_and_on_from_there(tmp_path: Path) -> None:
    loop = LoopSettings(images=8, batch_size=4, learning_rate=1e-3)
    config = PretrainConfig(
        family="sd3",
        pool_images=16,
        fault_share=0.5,
        autoencoder_pool_images=16,
        clip_pool_images=32,
        autoencoder=loop,
        clip=loop,
        denoiser=loop,
        num_processes=2,
    )
    made = pretrain(config, tmp_path / "work", tmp_path / "made")
    assert len(ClipEncoder(made["clip"]).captions(["a red circle"])) == 1
    first = load_backbone(ModelConfig("sd3", made["sd3"])).denoiser.state_dict()
    more = pretrain(replace(config, start_from=made["sd3"]), tmp_path / "more work", tmp_path / "more")
    second = load_backbone(ModelConfig("sd3", more["sd3"])).denoiser.state_dict()
    assert first.keys() == second.keys()
    assert not torch.equal(first["proj_out.weight"], second["proj_out.weight"])
    assert str(tmp_path) not in (Path(more["sd3"]) / "transformer/config.json").read_text()
    for family in ("sd15", "sdxl"):
        learns = replace(config, family=family, teacher=made["sd3"], clip_folder=made["clip"], num_processes=1)
        taught = pretrain(learns, tmp_path / f"{family} work", tmp_path / "made")[family]
        backbone = load_backbone(ModelConfig(family, taught))
        # The UNets' stock pipelines ignore a shift of the latents, so there must be none.
        assert backbone.pipeline.vae.config.shift_factor is None
        on = replace(config, family=family, start_from=taught, num_processes=1)
        more = pretrain(on, tmp_path / f"{family} more work", tmp_path / "more")[family]
        weights = load_backbone(ModelConfig(family, more)).denoiser.state_dict()
        assert not torch.equal(weights["conv_out.weight"], backbone.denoiser.state_dict()["conv_out.weight"])


def test_a_teacher_s_expectation_is_in_the_student_s_latents() -> None:
    """A teacher that knows (x_0, ε) must give them back, whatever the offset between the latents."""

    class Knowing(nn.Module):
        def forward(self, **_: object) -> object:
            return SimpleNamespace(sample=noise - (clean - 0.3))

    clean, noise = torch.randn(3, 16, 8, 8), torch.randn(3, 16, 8, 8)
    tokenizer = build_tokenizer(CAPTIONS)
    encoders = {name: build_text_encoder(tokenizer) for name in ("text_encoder", "text_encoder_2")}
    teacher = Teacher(nn.ModuleDict({"transformer": Knowing(), **encoders}), 0.3)
    tokens = pretraining.tokenize(tokenizer, CAPTIONS[:3])
    expected = teacher.expect(clean, noise, torch.tensor([0.1, 0.5, 0.9]), tokens)
    torch.testing.assert_close(expected[0], clean, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(expected[1], noise, rtol=1e-4, atol=1e-5)
