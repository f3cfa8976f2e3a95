from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from softrepa_pipeline.backbones import Backbone, ModelConfig, Noised, Prompt, inject, load_backbone
from softrepa_pipeline.inference import SamplingConfig, draw
from softrepa_pipeline.soft_tokens import SoftTokens, SoftTokensConfig

LAYERS = (0, 1, 2)
CAPTIONS = ["a red circle", "two blue squares", "a green triangle"]


@pytest.fixture
def tokens() -> SoftTokens:
    return SoftTokens(SoftTokensConfig(3, 4, 128, 10), torch.Generator().manual_seed(1))


def batch(backbone: Backbone, seed: int = 0) -> tuple[Noised, Prompt]:
    generator = torch.Generator().manual_seed(seed)
    latents, noise = (torch.randn(3, 16, 8, 8, generator=generator) for _ in range(2))
    return backbone.noise(latents, noise, torch.tensor([40.0, 555.0, 1000.0])), backbone.encode_prompts(CAPTIONS)


def plain_forward(model: nn.Module, noised: Noised, prompt: Prompt, tokens: SoftTokens) -> Tensor:
    """The published algorithm written out: tokens before each chosen block, the former ones removed first."""
    image = model.pos_embed(noised.sample)
    embedding = model.time_text_embed(noised.timestep, prompt.pooled)
    text = model.context_embedder(prompt.states)
    soft = tokens(noised.timestep)
    for index, block in enumerate(model.transformer_blocks):
        if index in LAYERS:
            text = torch.cat([soft[LAYERS.index(index)], text], dim=1)
        text, image = block(hidden_states=image, encoder_hidden_states=text, temb=embedding)
        if index in LAYERS and text is not None:
            text = text[:, 4:]
    patches = model.proj_out(model.norm_out(image, embedding))
    patches = patches.view(len(image), 4, 4, 2, 2, 16)
    return torch.einsum("nhwpqc->nchpwq", patches).reshape(len(image), 16, 8, 8)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_two_forwards_before_one_backward_equal_the_plain_algorithm(
    sd3: Backbone, tokens: SoftTokens, checkpointing: bool
) -> None:
    first, prompt = batch(sd3)
    second, _ = batch(sd3, seed=9)
    second = Noised(second.sample, second.target, torch.tensor([900.0, 10.0, 300.0]))
    expected = [plain_forward(sd3.denoiser, noised, prompt, tokens) for noised in (first, second)]
    (expected[0].square().mean() + expected[1].square().mean()).backward()
    wanted = {name: parameter.grad.clone() for name, parameter in tokens.named_parameters()}
    tokens.zero_grad()
    if checkpointing:
        sd3.denoiser.enable_gradient_checkpointing()
        sd3.denoiser.train()
    with inject(sd3.denoiser, sd3.sites(LAYERS), tokens):
        found = [sd3.predict(noised, prompt) for noised in (first, second)]
        (found[0].square().mean() + found[1].square().mean()).backward()
    for mine, plain in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, plain, rtol=1e-5, atol=1e-6)
    for name, parameter in tokens.named_parameters():
        torch.testing.assert_close(parameter.grad, wanted[name], rtol=1e-4, atol=1e-8)


def test_leaving_the_context_restores_the_base_bit_for_bit(sd3: Backbone, tokens: SoftTokens) -> None:
    noised, prompt = batch(sd3)
    keys = list(sd3.denoiser.state_dict())
    before = sd3.predict(noised, prompt)
    with inject(sd3.denoiser, sd3.sites(LAYERS), tokens):
        assert list(sd3.denoiser.state_dict()) == keys
        assert not torch.equal(sd3.predict(noised, prompt), before)
    assert torch.equal(sd3.predict(noised, prompt), before)


def test_only_tokens_receive_gradients(sd3: Backbone, tokens: SoftTokens) -> None:
    noised, prompt = batch(sd3)
    with inject(sd3.denoiser, sd3.sites(LAYERS), tokens):
        sd3.predict(noised, prompt).square().mean().backward()
    assert all(parameter.grad is None for parameter in sd3.denoiser.parameters())
    assert tokens.base.grad is not None
    assert tokens.base.grad.abs().sum() > 0


def test_stock_pipeline_draws_with_tokens_in_both_guidance_branches(sd3: Backbone, tokens: SoftTokens) -> None:
    config = SamplingConfig(num_inference_steps=2, batch_size=2)
    base = draw(sd3, CAPTIONS, config, guidance=3.0)
    with inject(sd3.denoiser, sd3.sites(LAYERS), tokens):
        soft = draw(sd3, CAPTIONS, config, guidance=3.0)
    assert base.shape == (3, 1, 32, 32, 3)
    assert (base != soft).any()
    assert (draw(sd3, CAPTIONS, config, guidance=3.0) == base).all()


def test_tokens_that_do_not_fit_are_refused(sd3: Backbone) -> None:
    with pytest.raises(ValueError, match=r"are 64 wide, but .* is 128 wide"):
        inject(sd3.denoiser, sd3.sites(LAYERS), SoftTokens(SoftTokensConfig(3, 4, 64, 0)))
    with pytest.raises(ValueError, match="2 layers, but 3 sites"):
        inject(sd3.denoiser, sd3.sites(LAYERS), SoftTokens(SoftTokensConfig(2, 4, 128, 0)))
    with pytest.raises(ValueError, match="blocks 0 to 5, so there is no layer 7"):
        sd3.sites((0, 7))


def test_missing_and_foreign_model_folders(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no model folder at .*; set model\.base"):
        load_backbone(ModelConfig("sd3", str(tmp_path / "nowhere")))
    (tmp_path / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    with pytest.raises(ValueError, match="holds a StableDiffusionPipeline; family sd3 needs"):
        load_backbone(ModelConfig("sd3", str(tmp_path)))
    with pytest.raises(ValueError, match=r"model\.family must be one of"):
        ModelConfig("sd9", "x")
