from __future__ import annotations

import numpy as np
import pytest
import torch
from reference_forward import plain_forward
from torch import Tensor

from softrepa_pipeline.backbones import Backbone, Noised, Prompt, inject
from softrepa_pipeline.inference import SamplingConfig, Strength, add_tokens, draw, draw_batch
from softrepa_pipeline.soft_tokens import SoftTokens, SoftTokensConfig, TokenBanks

CAPTIONS = ["a red circle", "two blue squares", "a green triangle"]
WIDTHS = {"sd15": 96, "sdxl": 128, "sd3": 128}
STAGES = {"sd15": ("down",), "sdxl": ("down", "mid"), "sd3": ("0", "1", "2", "3", "4")}


def make_tokens(family: str, num_buckets: int = 100, seed: int = 1, layers: tuple[str, ...] = ()) -> SoftTokens:
    """As published: shared by whole stages on UNets, by layer on SD3."""
    config = SoftTokensConfig(layers or STAGES[family], 4, WIDTHS[family], num_buckets, shared=family != "sd3")
    tokens = SoftTokens(config, torch.Generator().manual_seed(seed))
    with torch.no_grad():
        tokens.base.mul_(10)
    return tokens


def batch(
    backbone: Backbone, seed: int = 0, timesteps: tuple[float, ...] = (40.0, 555.0, 1000.0)
) -> tuple[Noised, Prompt]:
    generator = torch.Generator().manual_seed(seed)
    latents, noise = (torch.randn(3, 16, 8, 8, generator=generator) for _ in range(2))
    return backbone.noise(latents, noise, torch.tensor(timesteps)), backbone.encode_prompts(CAPTIONS)


def gradients(tokens: SoftTokens, outputs: list[Tensor]) -> dict[str, Tensor]:
    tokens.zero_grad()
    sum(output.square().mean() for output in outputs).backward()  # type: ignore[union-attr]
    return {name: parameter.grad.clone() for name, parameter in tokens.named_parameters() if parameter.grad is not None}


def assert_equal_to(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert (found[name] - value).norm() <= 1e-5 * value.norm(), name


@pytest.mark.parametrize("num_buckets", [0, 100])
@pytest.mark.parametrize("mode", ["plain", "checkpointed", "compiled"])
def test_two_forwards_before_one_backward_equal_the_published_algorithm(
    backbone: Backbone, num_buckets: int, mode: str
) -> None:
    tokens = make_tokens(backbone.family, num_buckets)
    batches = [batch(backbone), batch(backbone, seed=9, timesteps=(900.0, 10.0, 300.0))]
    wanted = [plain_forward(backbone, *one, tokens) for one in batches]
    wanted_gradients = gradients(tokens, wanted)
    if mode == "checkpointed":
        backbone.denoiser.enable_gradient_checkpointing()
        backbone.denoiser.train()
    with add_tokens(backbone, tokens):
        if mode == "compiled":
            backbone.denoiser.compile(backend="aot_eager", fullgraph=True)
        found = [backbone.predict(*one) for one in batches]
        found_gradients = gradients(tokens, found)
    for mine, theirs in zip(found, wanted, strict=True):
        assert (mine - theirs).norm() <= 1e-5 * theirs.norm()
    assert_equal_to(found_gradients, wanted_gradients)


def test_stages_may_be_named_by_their_layers(backbone: Backbone) -> None:
    if backbone.family == "sd3":
        pytest.skip("has no stages")
    by_layer = backbone.sites(STAGES[backbone.family]).names
    noised, prompt = batch(backbone)
    tokens = make_tokens(backbone.family)
    with add_tokens(backbone, tokens):
        whole = backbone.predict(noised, prompt)
    with add_tokens(backbone, make_tokens(backbone.family, layers=by_layer)):
        assert torch.equal(backbone.predict(noised, prompt), whole)
    own = SoftTokens(SoftTokensConfig(by_layer, 4, WIDTHS[backbone.family], 0))
    assert own.base.shape[0] == len(by_layer) > 1
    with add_tokens(backbone, own):
        assert not torch.equal(backbone.predict(noised, prompt), whole)


def test_strength_leads_from_the_base_to_the_tokens_and_beyond(backbone: Backbone) -> None:
    noised, prompt = batch(backbone)
    keys = list(backbone.denoiser.state_dict())
    base = backbone.predict(noised, prompt)
    with add_tokens(backbone, make_tokens(backbone.family), strength=0.0) as injection:
        assert torch.equal(backbone.predict(noised, prompt), base)
        injection.strength = 1.0
        assert list(backbone.denoiser.state_dict()) == keys
        whole = backbone.predict(noised, prompt)
        steps = []
        for strength in (1e-4, 0.5, 0.9999, 1.5):
            injection.strength = strength
            steps.append((backbone.predict(noised, prompt) - base).norm().item())
        injection.strength = 0.0
        assert torch.equal(backbone.predict(noised, prompt), base)
        injection.strength = 1.0
        assert torch.equal(backbone.predict(noised, prompt), whole)
        injection.remove()
        assert torch.equal(backbone.predict(noised, prompt), base)
        with pytest.raises(ValueError, match="strength must be a number from 0 on, not -1"):
            injection.strength = -1
    distance = (whole - base).norm().item()
    assert steps[0] < 1e-3 * distance
    assert steps[0] < steps[1] < steps[2] < steps[3]
    assert steps[2] == pytest.approx(distance, rel=1e-3)


@pytest.mark.parametrize("mode", ["plain", pytest.param("compiled", marks=pytest.mark.slow)])
def test_each_sample_may_have_its_share_of_the_strength(backbone: Backbone, mode: str) -> None:
    noised, prompt = batch(backbone)
    base, tokens = backbone.predict(noised, prompt), make_tokens(backbone.family)
    with add_tokens(backbone, tokens, strength=0.5):
        half = backbone.predict(noised, prompt)
    with add_tokens(backbone, tokens):
        if mode == "compiled":
            backbone.denoiser.compile(backend="aot_eager", fullgraph=True)
        whole = backbone.predict(noised, prompt)
        mixed = backbone.predict(noised, prompt, share=torch.tensor([0.0, 0.5, 1.0]))
        torch.testing.assert_close(mixed, torch.stack([base[0], half[1], whole[2]]))
        torch.testing.assert_close(backbone.predict(noised, prompt), whole)


def test_a_strength_may_be_for_some_timesteps(backbone: Backbone) -> None:
    noised, prompt = batch(backbone, timesteps=(40.0, 555.0, 1000.0))
    base, tokens = backbone.predict(noised, prompt), make_tokens(backbone.family)
    with add_tokens(backbone, tokens):
        whole = backbone.predict(noised, prompt)
    with add_tokens(backbone, tokens, Strength(timestep_range=(500.0, 990.0))):
        torch.testing.assert_close(backbone.predict(noised, prompt), torch.stack([base[0], whole[1], base[2]]))
        share = torch.tensor([1.0, 0.0, 1.0])
        torch.testing.assert_close(backbone.predict(noised, prompt, share=share), base)
    with pytest.raises(ValueError, match=r"strength.timestep_range must lie in \[0, 1000\], not \(500.0, 2000.0\)"):
        Strength(timestep_range=(500.0, 2000.0))


def test_leaving_the_context_restores_a_compiled_base(backbone: Backbone) -> None:
    noised, prompt = batch(backbone)
    base = backbone.predict(noised, prompt)
    backbone.denoiser.compile(backend="eager")
    torch.testing.assert_close(backbone.predict(noised, prompt), base)
    with add_tokens(backbone, make_tokens(backbone.family)):
        assert (backbone.predict(noised, prompt) - base).abs().max() > 1e-3
    torch.testing.assert_close(backbone.predict(noised, prompt), base)


def test_every_sample_may_name_its_bank(backbone: Backbone) -> None:
    noised, prompt = batch(backbone)
    banks = [make_tokens(backbone.family, seed=seed) for seed in (1, 2)]
    alone = []
    for bank in banks:
        with add_tokens(backbone, bank):
            alone.append(backbone.predict(noised, prompt))
    with inject(backbone.denoiser, backbone.sites(STAGES[backbone.family]), TokenBanks(banks)):
        mixed = backbone.predict(noised, prompt, torch.tensor([0, 1, 0]))
        torch.testing.assert_close(mixed, torch.stack([alone[0][0], alone[1][1], alone[0][2]]))
        torch.testing.assert_close(backbone.predict(noised, prompt), alone[0])


def test_only_tokens_receive_gradients(backbone: Backbone) -> None:
    noised, prompt = batch(backbone)
    tokens = make_tokens(backbone.family)
    with add_tokens(backbone, tokens):
        backbone.predict(noised, prompt).square().mean().backward()
    assert all(parameter.grad is None for parameter in backbone.denoiser.parameters())
    assert tokens.base.grad is not None
    assert tokens.base.grad.abs().sum() > 0


def test_stock_pipeline_draws_with_tokens_in_both_guidance_branches(backbone: Backbone) -> None:
    config = SamplingConfig(num_inference_steps=2, batch_size=2)
    base = draw(backbone, CAPTIONS, config, guidance=3.0)
    seen: list[Tensor] = []
    with add_tokens(backbone, make_tokens(backbone.family)):
        block = backbone.sites(STAGES[backbone.family]).blocks[0]
        hook = block.register_forward_pre_hook(
            lambda _, args, kwargs: seen.append(kwargs["encoder_hidden_states"]), with_kwargs=True
        )
        soft = draw(backbone, CAPTIONS, config, guidance=3.0, negative_prompt="a red circle")
        hook.remove()
    assert base.shape == (3, 1, 32, 32, 3)
    assert (base != soft).any()
    assert {states.shape[1] for states in seen} == {24}, "four tokens before twenty words, in both branches"
    assert {states.shape[0] for states in seen} == {2, 4}
    np.testing.assert_array_equal(draw(backbone, CAPTIONS, config, guidance=3.0), base)


def test_tokens_may_act_on_the_conditional_branch_alone(backbone: Backbone) -> None:
    config, work = SamplingConfig(num_inference_steps=2, batch_size=2), [(caption, 0) for caption in CAPTIONS[:2]]
    unconditional: list[Tensor] = []
    base = draw_batch(backbone, work, config, guidance=3.0)
    with add_tokens(backbone, make_tokens(backbone.family)):
        both = draw_batch(backbone, work, config, guidance=3.0)
        hook = backbone.denoiser.register_forward_hook(
            lambda _, __, output: unconditional.append(output[0].chunk(2)[0].clone())
        )
        conditional = draw_batch(backbone, work, config, guidance=3.0, conditional_only=True)
        hook.remove()
        alone = draw_batch(backbone, work, config, guidance=1.0)
        np.testing.assert_array_equal(draw_batch(backbone, work, config, guidance=1.0, conditional_only=True), alone)
    assert (conditional != both).any()
    assert (conditional != base).any()
    # The first step's noise is the base's too, so its unconditional prediction must be.
    wanted: list[Tensor] = []
    hook = backbone.denoiser.register_forward_hook(lambda _, __, output: wanted.append(output[0].chunk(2)[0].clone()))
    draw_batch(backbone, work, config, guidance=3.0)
    hook.remove()
    torch.testing.assert_close(unconditional[0], wanted[0])


def test_tokens_that_do_not_fit_are_refused(backbone: Backbone) -> None:
    layers, width = backbone.sites(STAGES[backbone.family]).names, WIDTHS[backbone.family]
    with pytest.raises(ValueError, match=rf"are 64 wide, but .* is {width} wide"):
        add_tokens(backbone, SoftTokens(SoftTokensConfig(layers, 4, 64, 0)))
    sites = backbone.sites(layers)
    with pytest.raises(ValueError, match=f"1 layers, but {len(layers)} sites"):
        inject(backbone.denoiser, sites, SoftTokens(SoftTokensConfig(layers[:1], 4, width, 0)))
    with pytest.raises(ValueError, match="there is no layer side; this denoiser has"):
        backbone.sites(("side",))
    with pytest.raises(ValueError, match="names a layer twice"):
        backbone.sites((layers[0], layers[0]))


def test_what_tokens_cannot_stand_beside_is_refused(backbone: Backbone) -> None:
    noised, prompt = batch(backbone)
    tokens = make_tokens(backbone.family)
    with add_tokens(backbone, tokens):
        with pytest.raises(ValueError, match="one text tensor, not tuple"):
            backbone.predict(noised, Prompt((prompt.states, prompt.states), prompt.pooled))  # type: ignore[arg-type]
        if backbone.family != "sd3":
            with pytest.raises(ValueError, match="without an attention mask"):
                backbone.denoiser(
                    noised.sample, 5, prompt.states, encoder_attention_mask=torch.ones(prompt.states.shape[:2])
                )
        else:
            with pytest.raises(ValueError, match="cannot stand beside an IP-Adapter"):
                backbone.denoiser(
                    noised.sample,
                    prompt.states,
                    prompt.pooled,
                    noised.timestep,
                    joint_attention_kwargs={"ip_adapter_image_embeds": [prompt.states]},
                )
        with add_tokens(backbone, tokens), pytest.raises(ValueError, match="has soft tokens already"):
            backbone.predict(noised, prompt)


def test_dual_attention_blocks_of_sd35_take_tokens_too(sd3: Backbone) -> None:
    torch.manual_seed(0)
    config = {**sd3.denoiser.config, "dual_attention_layers": (0, 1, 2)}
    sd3.pipeline.transformer = type(sd3.denoiser).from_config(config).eval()
    with torch.no_grad():
        for parameter in sd3.denoiser.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    assert sd3.denoiser.transformer_blocks[0].use_dual_attention
    noised, prompt = batch(sd3)
    tokens = make_tokens("sd3")
    wanted = plain_forward(sd3, noised, prompt, tokens)
    with add_tokens(sd3, tokens):
        found = sd3.predict(noised, prompt)
    assert (found - wanted).norm() <= 1e-5 * wanted.norm()
