"""Editing on tiny random models: against the stock pipelines, the published algorithm, and by its invariants."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import load
from diffusers import DDIMScheduler, UNet2DConditionModel
from torch import Tensor, nn

from softrepa_pipeline.backbones import Backbone
from softrepa_pipeline.evaluation.editing import Captions, EditConfig, edit, native_side
from softrepa_pipeline.evaluation.editing.edit import reconstruct
from softrepa_pipeline.evaluation.editing.features import first_for_all, shared_modules
from softrepa_pipeline.evaluation.editing.flow import flow_edit
from softrepa_pipeline.evaluation.editing.guidance import encode
from softrepa_pipeline.evaluation.editing.inversion import ddim_levels, edit_by_inversion, invert
from softrepa_pipeline.evaluation.pixels import to_pixels
from softrepa_pipeline.inference import add_tokens
from softrepa_pipeline.noising import mix_preserving_variance, separate
from softrepa_pipeline.randomness import torch_generator
from softrepa_pipeline.soft_tokens import SoftTokens, SoftTokensConfig

EDITS = [
    Captions("a red circle", "a blue circle"),
    Captions("a green triangle", "a green square"),
    Captions("two blue squares", "three blue squares"),
]
WIDTHS = {"sd15": 96, "sdxl": 128, "sd3": 128}
FLOW = EditConfig("flowedit", num_steps=4, start_step=1, source_guidance=1.5, target_guidance=4.0)
DDIM = EditConfig("ddim", num_steps=4, start_step=0, source_guidance=1.0, target_guidance=3.0)
PNP = replace(DDIM, method="pnp")


def tokens(family: str) -> SoftTokens:
    layers = ("0", "2") if family == "sd3" else ("down.0", "mid.0")
    made = SoftTokens(SoftTokensConfig(layers, 4, WIDTHS[family], 10), torch.Generator().manual_seed(0))
    with torch.no_grad():
        made.base.mul_(50)
    return made


def images(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)


def latents(backbone: Backbone, count: int) -> Tensor:
    return backbone.encode_images(to_pixels(images(count))).float()


@pytest.fixture(params=["sd15", "sdxl"])
def unet(request: pytest.FixtureRequest, model_folders: dict[str, Path]) -> Backbone:
    return load(model_folders[request.param], request.param)


@pytest.mark.parametrize("with_tokens", [False, True])
@torch.no_grad()
def test_flowedit_leaves_the_source_as_it_is_where_captions_are_equal(sd3: Backbone, with_tokens: bool) -> None:
    if with_tokens:
        add_tokens(sd3, tokens("sd3"), 0.7)
    source = latents(sd3, 2)
    same = [Captions(own.target, own.target) for own in EDITS[:2]]
    assert torch.equal(flow_edit(sd3, source, same, replace(FLOW, target_guidance=FLOW.source_guidance)), source)
    assert not torch.equal(flow_edit(sd3, source, same, FLOW), source)


@torch.no_grad()
def test_flowedit_is_the_published_algorithm(sd3: Backbone) -> None:
    source = latents(sd3, 1)
    own, null = EDITS[0], sd3.encode_prompts([""])
    prompts = {name: sd3.encode_prompts([text]) for name, text in (("source", own.source), ("target", own.target))}

    def velocity(sample: Tensor, sigma: float, name: str, guidance: float) -> Tensor:
        parts = [
            sd3.pipeline.transformer(sample, prompt.states, prompt.pooled, torch.tensor([1000 * sigma])).sample
            for prompt in (null, prompts[name])
        ]
        return parts[0] + guidance * (parts[1] - parts[0])

    sigmas, edited = [*np.linspace(1, 0.001, 4).tolist(), 0.0], source
    for step in (1, 2, 3):
        noise = torch.randn(source.shape[1:], generator=torch_generator(0, f"edit {own.source} → {own.target}", step))
        noised = (1 - sigmas[step]) * source + sigmas[step] * noise
        beside = edited + noised - source
        difference = velocity(beside, sigmas[step], "target", 4.0) - velocity(noised, sigmas[step], "source", 1.5)
        edited = edited + (sigmas[step + 1] - sigmas[step]) * difference
    torch.testing.assert_close(flow_edit(sd3, source, [own], FLOW), edited, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("guidance", [1.0, 3.0])
@torch.no_grad()
def test_sampling_after_inversion_is_the_stock_ddim_pipeline(unet: Backbone, guidance: float) -> None:
    add_tokens(unet, tokens(unet.family))
    source, config = latents(unet, 3), replace(DDIM, target_guidance=guidance)
    start = invert(unet, source, encode(unet, EDITS), ddim_levels(unet, 4), config.source_guidance)[-1]
    unet.pipeline.scheduler = DDIMScheduler.from_config(unet.pipeline.scheduler.config, clip_sample=False)
    stock = unet.pipeline(
        prompt=[own.target for own in EDITS],
        latents=start,
        num_inference_steps=4,
        guidance_scale=guidance,
        output_type="latent",
    ).images
    torch.testing.assert_close(edit_by_inversion(unet, source, EDITS, config), stock, atol=2e-5, rtol=1e-4)


@torch.no_grad()
def test_inversion_and_sampling_with_the_same_caption_reconstruct_the_better_the_more_steps(unet: Backbone) -> None:
    source = torch.randn(1, 16, 8, 8, generator=torch.Generator().manual_seed(0))
    same, errors = [Captions(EDITS[0].source, EDITS[0].source)], []
    for num_steps in (2, 8, 32):
        config = replace(DDIM, num_steps=num_steps, target_guidance=1.0)
        errors.append(float((edit_by_inversion(unet, source, same, config) - source).norm() / source.norm()))
    assert errors[0] > 1.5 * errors[1] > 1.5**2 * errors[2]
    assert errors[2] < 0.15
    pnp = edit_by_inversion(unet, source, same, replace(PNP, num_steps=8, target_guidance=1.0))
    assert (pnp - source).norm() / source.norm() < errors[0]


@pytest.mark.parametrize("config", [FLOW, PNP], ids=["flowedit", "pnp"])
def test_edits_depend_on_seed_and_captions_but_not_on_the_batch(
    config: EditConfig, model_folders: dict[str, Path]
) -> None:
    family = "sd3" if config.method == "flowedit" else "sdxl"
    backbone, config = load(model_folders[family], family), replace(config, num_steps=2, start_step=0)
    sources = images(3)
    edited = edit(backbone, sources, EDITS, config)
    np.testing.assert_array_equal(edit(backbone, sources, EDITS, config), edited)
    apart = edit(backbone, sources, EDITS, replace(config, batch_size=1))
    assert np.abs(apart.astype(int) - edited).max() <= 1
    reordered = edit(backbone, sources[::-1].copy(), EDITS[::-1], replace(config, batch_size=2))
    assert np.abs(reordered[::-1].astype(int) - edited).max() <= 1
    other_seed = edit(backbone, sources, EDITS, replace(config, seed=1))
    assert np.array_equal(other_seed, edited) == (config.method != "flowedit")
    assert edited.shape == sources.shape
    assert not np.array_equal(edited, reconstruct(backbone, sources))
    with add_tokens(backbone, tokens(family)):
        assert not np.array_equal(edit(backbone, sources, EDITS, config), edited)
    np.testing.assert_array_equal(edit(backbone, sources, EDITS, config), edited)


def test_a_later_start_stays_closer_to_the_source(model_folders: dict[str, Path]) -> None:
    for family, config in (("sd3", FLOW), ("sd15", DDIM)):
        backbone = load(model_folders[family], family)
        plain = reconstruct(backbone, images(3)).astype(int)
        changes = [
            np.abs(edit(backbone, images(3), EDITS, replace(config, num_steps=8, start_step=start)) - plain).mean()
            for start in (0, 4, 7)
        ]
        assert changes[0] > changes[1] > changes[2]


@torch.no_grad()
def test_pnp_without_features_is_ddim_and_with_them_keeps_more(unet: Backbone) -> None:
    source = latents(unet, 3)
    plain = edit_by_inversion(unet, source, EDITS, DDIM)
    none = edit_by_inversion(unet, source, EDITS, replace(PNP, feature_share=0.0, attention_share=0.0))
    torch.testing.assert_close(none, plain, atol=1e-5, rtol=1e-4)
    kept = edit_by_inversion(unet, source, EDITS, replace(PNP, feature_share=1.0, attention_share=1.0))
    assert (kept - source).norm() < (plain - source).norm()
    assert not any(module._forward_hooks for module in unet.denoiser.modules())


def test_the_first_parts_output_stands_for_all() -> None:
    module = nn.Linear(2, 3)
    inputs = torch.randn(6, 5, 2)
    with first_for_all([module], 3):
        shared = module(inputs)
    torch.testing.assert_close(shared, module(inputs[:2]).repeat(3, 1, 1))
    assert not torch.equal(module(inputs), shared)


def test_shared_modules_are_those_published_for_sd15() -> None:
    with torch.device("meta"):
        unet = UNet2DConditionModel(cross_attention_dim=768, attention_head_dim=8)
    names = {module: name for name, module in unet.named_modules()}
    published = ["up_blocks.1.resnets.1.conv2"]
    for stage, transformer in ((1, 1), (1, 2), (2, 0), (2, 1), (2, 2), (3, 0), (3, 1), (3, 2)):
        prefix = f"up_blocks.{stage}.attentions.{transformer}.transformer_blocks.0.attn1"
        published += [f"{prefix}.to_q", f"{prefix}.to_k"]
    config = replace(PNP, num_steps=50)
    assert [names[module] for module in shared_modules(unet, config, 24)] == published
    assert [names[module] for module in shared_modules(unet, config, 25)] == published[:1]
    assert [names[module] for module in shared_modules(unet, config, 39)] == published[:1]
    assert shared_modules(unet, config, 40) == []


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_separate_undoes_the_mixture(kind: str) -> None:
    clean, noise = torch.randn(2, 3, 2, 4, 4)
    signal = torch.tensor([0.9, 0.5, 0.01])
    sample, target = mix_preserving_variance(clean, noise, signal, kind)
    for found, expected in zip(separate(sample, target, signal, kind), (clean, noise), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    with pytest.raises(ValueError, match="'v' is not one of epsilon"):
        separate(sample, target, signal, "v")


@torch.no_grad()
def test_latents_are_decoded_as_by_the_stock_pipeline(backbone: Backbone) -> None:
    source = latents(backbone, 2)
    config = backbone.pipeline.vae.config
    raw = backbone.pipeline.vae.decode(source / config.scaling_factor + (config.shift_factor or 0.0)).sample
    stock = backbone.pipeline.image_processor.postprocess(raw, output_type="np")
    np.testing.assert_array_equal(reconstruct(backbone, images(2)), np.rint(stock * 255).astype(np.uint8))
    assert native_side(backbone) == 32


def test_wrong_settings_are_named(sd3: Backbone) -> None:
    for changes, message in (
        ({"method": "sdedit"}, "edit.method must be one of flowedit, ddim, pnp, not 'sdedit'"),
        ({"start_step": 4}, r"edit.start_step must be in \[0, 3\], not 4"),
        ({"target_guidance": -1.0}, "edit.target_guidance must be 0 or more, not -1"),
        ({"feature_share": 1.5}, r"edit.feature_share must be in \[0, 1\], not 1.5"),
        ({"batch_size": 0}, "edit.num_steps and edit.batch_size must be 1 or more"),
    ):
        with pytest.raises(ValueError, match=message):
            replace(FLOW, **changes)
    with pytest.raises(ValueError, match=r"edit\.method pnp is for sd15, sdxl, not for sd3"):
        edit(sd3, images(1), EDITS[:1], PNP)
    with pytest.raises(ValueError, match="images are 30 × 32; this model needs sides that are multiples of 8"):
        edit(sd3, images(1)[:, :, :30].copy(), EDITS[:1], FLOW)
