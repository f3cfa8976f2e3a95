"""The ComfyUI node predicts what this package predicts; against a small model of ComfyUI's interface."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from conftest import load
from diffusers.loaders.lora_conversion_utils import _maybe_map_sgm_blocks_to_diffusers
from full_size import full_size
from publishing.comfyui_model import DiscreteSampling, FlowSampling, MMDiT, Model, Patcher, UNet, load_node
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from softrepa_pipeline.backbones import Backbone, Noised, Prompt
from softrepa_pipeline.backbones.unet import transformer_blocks
from softrepa_pipeline.commands import main
from softrepa_pipeline.inference import add_tokens
from softrepa_pipeline.soft_tokens import SoftTokens, SoftTokensConfig, load_soft_tokens, save_soft_tokens

FAMILIES = ("sd15", "sdxl", "sd3")
WIDTHS = {"sd15": 96, "sdxl": 128, "sd3": 128}
LAYERS = {"sd15": ("down.1", "mid", "up.0", "up.3"), "sdxl": ("down", "mid"), "sd3": ("0", "2", "3")}
NODE = Path(str(files("softrepa_pipeline.publishing") / "standalone/comfyui.py"))
TIMESTEP = 850


def write_tokens(path: Path, family: str, **changes: Any) -> Path:
    settings = {"layers": LAYERS[family], "num_tokens": 4, "width": WIDTHS[family], "num_buckets": 10}
    config = SoftTokensConfig(**{**settings, "shared": family == "sdxl", **changes})
    tokens = SoftTokens(config, torch.Generator().manual_seed(0))
    with torch.no_grad():
        for parameter in tokens.parameters():
            parameter.mul_(50)
    save_soft_tokens(tokens, path, {"family": family})
    return path


@pytest.fixture
def node(tmp_path: Path) -> ModuleType:
    (tmp_path / "models/softrepa").mkdir(parents=True)
    return load_node(NODE, tmp_path / "models")


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def backbone(family: str, model_folders: dict[str, Path]) -> Backbone:
    return load(model_folders[family], family)


def patcher_of(backbone: Backbone) -> Patcher:
    if backbone.family == "sd3":
        return Patcher(Model(MMDiT(backbone.denoiser), FlowSampling()))
    return Patcher(Model(UNet(backbone.denoiser), DiscreteSampling(backbone.pipeline.scheduler.alphas_cumprod)))


def apply(node: ModuleType, patcher: Patcher, tokens: Path, strength: float, *options: bool) -> Patcher:
    (patched,) = node.ApplySoftTokens().apply(patcher, tokens.name, strength, *options)
    return patched


def sample() -> Tensor:
    return torch.randn(1, 16, 8, 8, generator=torch.Generator().manual_seed(1))


def predict(patcher: Patcher, backbone: Backbone, together: bool = True) -> Tensor:
    """Of the negative and the positive prompt."""
    conditions = []
    for caption in ("", "two blue squares left of a green triangle"):
        prompt = backbone.encode_prompts([caption])
        condition = {"c_crossattn": prompt.states}
        if prompt.pooled is not None:
            condition["y"] = _label(backbone, prompt.pooled)
        conditions.append(condition)
    sigma = patcher.model.model_sampling.sigma(TIMESTEP)
    return torch.cat(patcher.predict(sample(), sigma, conditions, together))


def _label(backbone: Backbone, pooled: Tensor) -> Tensor:
    """SDXL: the pooled text, and the sizes as diffusers encodes them."""
    if backbone.family == "sd3":
        return pooled
    noised = Noised(sample(), sample(), torch.tensor([TIMESTEP]))
    conditions: Any = backbone.added_conditions(noised, Prompt(pooled, pooled))  # type: ignore[attr-defined]
    sizes = backbone.pipeline.unet.add_time_proj(conditions["time_ids"].flatten()).reshape(1, -1)
    return torch.cat([pooled, sizes], dim=-1)


@torch.no_grad()
def expected(backbone: Backbone) -> Tensor:
    noised = Noised(sample(), sample(), torch.tensor([TIMESTEP]))
    captions = ("", "two blue squares left of a green triangle")
    return torch.cat([backbone.predict(noised, backbone.encode_prompts([caption])) for caption in captions])


def test_the_small_model_of_comfyui_predicts_what_diffusers_predicts(backbone: Backbone) -> None:
    torch.testing.assert_close(predict(patcher_of(backbone), backbone), expected(backbone))


@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize("strength", [1.0, 0.5, 1.5])
def test_both_branches_of_guidance_get_what_the_package_gives(
    strength: float, together: bool, backbone: Backbone, node: ModuleType, tmp_path: Path
) -> None:
    tokens = write_tokens(tmp_path / "models/softrepa/tokens.safetensors", backbone.family)
    base = expected(backbone)
    found = predict(apply(node, patcher_of(backbone), tokens, strength), backbone, together)
    with add_tokens(backbone, load_soft_tokens(tokens)[0], strength):
        wanted = expected(backbone)
    torch.testing.assert_close(found, wanted)
    assert ((found - base).abs().amax(dim=(1, 2, 3)) > 1e-3).all()


@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize("strength", [1.0, 0.5])
def test_in_the_conditional_branch_alone_the_negative_prompt_has_the_base(
    strength: float, together: bool, backbone: Backbone, node: ModuleType, tmp_path: Path
) -> None:
    tokens = write_tokens(tmp_path / "models/softrepa/tokens.safetensors", backbone.family)
    negative, _ = expected(backbone).chunk(2)
    with add_tokens(backbone, load_soft_tokens(tokens)[0], strength):
        _, positive = expected(backbone).chunk(2)
    found = predict(apply(node, patcher_of(backbone), tokens, strength, True), backbone, together)
    torch.testing.assert_close(found, torch.cat([negative, positive]))


def test_strength_0_is_the_base_and_nothing_stays_behind(backbone: Backbone, node: ModuleType, tmp_path: Path) -> None:
    tokens = write_tokens(tmp_path / "models/softrepa/tokens.safetensors", backbone.family)
    patcher = patcher_of(backbone)
    base = predict(patcher, backbone)
    patched = apply(node, patcher, tokens, 1.0)
    soft = predict(patched, backbone)
    assert not torch.equal(soft, base)
    assert not any(
        module._forward_pre_hooks or module._forward_hooks for module in patcher.model.diffusion_model.modules()
    )
    assert torch.equal(predict(patcher, backbone), base)
    assert torch.equal(predict(apply(node, patched, tokens, 0.0), backbone), base)
    assert torch.equal(predict(apply(node, patched, tokens, 1.0), backbone), soft)


def test_a_call_that_fails_leaves_no_hook(sd3: Backbone, node: ModuleType, tmp_path: Path) -> None:
    tokens = write_tokens(tmp_path / "models/softrepa/tokens.safetensors", "sd3")
    patched = apply(node, patcher_of(sd3), tokens, 0.5)
    patched.add_wrapper_with_key("apply_model", "broken", _fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        predict(patched, sd3)
    assert not any(block._forward_pre_hooks for block in patched.model.diffusion_model.joint_blocks)


def _fail(_executor: Callable, *_args: Any, **_kwargs: Any) -> None:
    raise RuntimeError("out of memory")


# Where ComfyUI's full-size UNets have transformers, in `input_blocks` and in `output_blocks`.
PLACES = {
    "sd15": ((1, 2, 4, 5, 7, 8), tuple(range(3, 12))),
    "sdxl": ((4, 5, 7, 8), tuple(range(6))),
}


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_layers_of_full_size_unets_are_those_of_diffusers(
    family: str, model_folders: dict[str, Path], node: ModuleType
) -> None:
    own = full_size(family, model_folders[family]).denoiser
    tree = UNet(own)
    wanted, found = paths(own, transformer_blocks(own)), paths(tree, node.text_blocks(tree))
    numbers = [
        tuple(dict.fromkeys(int(path.split(".")[1]) for path in found.values() if path.startswith(stage)))
        for stage in ("input_blocks", "output_blocks")
    ]
    assert tuple(numbers) == PLACES[family]
    # diffusers' own translation of ComfyUI's numbers, which it has for LoRAs; it leaves the stages' names as they are.
    names = {f"lora_unet_{path.replace('.', '_')}": name for name, path in found.items()}
    layers = SimpleNamespace(layers_per_block=own.config.layers_per_block)
    translated = {name: path for path, name in _maybe_map_sgm_blocks_to_diffusers(names, layers).items()}
    assert numbers_in(translated) == numbers_in(wanted)


def numbers_in(paths: dict[str, str]) -> dict[str, list[str]]:
    return {name: re.findall(r"\d+", path) for name, path in paths.items()}


def paths(model: nn.Module, blocks: dict[str, nn.Module]) -> dict[str, str]:
    """Where these blocks are in the model."""
    path_of = {module: path for path, module in model.named_modules()}
    return {name: path_of[block] for name, block in blocks.items()}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"width": 64}, r"these soft tokens are 64 wide, for layers .*; this MMDiT has text 128 wide"),
        ({"layers": ("0", "9")}, r"for layers \['0', '9'\]; this MMDiT has text 128 wide and layers \['0', '1'"),
    ],
)
def test_tokens_that_do_not_fit_are_refused_at_once(
    changes: dict[str, Any], message: str, sd3: Backbone, node: ModuleType, tmp_path: Path
) -> None:
    tokens = write_tokens(tmp_path / "models/softrepa/tokens.safetensors", "sd3", **changes)
    with pytest.raises(ValueError, match=message):
        apply(node, patcher_of(sd3), tokens, 1.0)


@pytest.mark.parametrize("changes", [{}, {"num_buckets": 0}, {"shared": True, "layers": ("0",)}, {"version": 1}])
def test_files_are_read_as_the_package_reads_them(changes: dict[str, Any], node: ModuleType, tmp_path: Path) -> None:
    tokens = write_tokens(
        tmp_path / "tokens.safetensors", "sd3", **{k: v for k, v in changes.items() if k != "version"}
    )
    if "version" in changes:
        config = {"num_layers": 3, "num_tokens": 4, "width": 128, "num_buckets": 10}
        header = {"format_version": "1", "family": "sd3", "layers": "[0, 2, 3]", "config": json.dumps(config)}
        save_file(load_file(tokens), tokens, metadata=header)
    timestep = torch.tensor([0.0, 99.9, 100.0, 1000.0])
    wanted, _ = load_soft_tokens(tokens)
    found = node.SoftTokens(tokens)
    assert found.layers == list(wanted.config.layers)
    assert torch.equal(found.at(timestep), wanted(timestep))


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ({"format_version": "3", "config": "{}"}, "is no file of soft tokens that this node can read"),
        ({}, "is no file of soft tokens that this node can read"),
        (
            {"config": json.dumps({"layers": ["0"], "num_tokens": 4, "width": 128, "num_buckets": 10})},
            r"is damaged: its tensors are \[\(1, 2\)\]",
        ),
    ],
)
def test_other_files_are_refused(header: dict[str, str], message: str, node: ModuleType, tmp_path: Path) -> None:
    save_file({"base": torch.zeros(1, 2)}, tmp_path / "other.safetensors", metadata=header)
    with pytest.raises(ValueError, match=message):
        node.SoftTokens(tmp_path / "other.safetensors")


def test_a_stage_needs_a_row_for_each_of_its_layers_unless_they_share_one(
    model_folders: dict[str, Path], node: ModuleType, tmp_path: Path
) -> None:
    patcher = patcher_of(load(model_folders["sdxl"], "sdxl"))
    tokens = write_tokens(tmp_path / "models/softrepa/tokens.safetensors", "sdxl", shared=False)
    with pytest.raises(ValueError, match=r"for layers \['down', 'mid'\]; this UNet has text 128 wide"):
        apply(node, patcher, tokens, 1.0)


# Needs no diffusers: what loads it is torch, safetensors, and ComfyUI.
LOAD = """
import sys
from pathlib import Path
from publishing.comfyui_model import load_node
node = load_node(Path(sys.argv[1]) / "__init__.py", Path("models"))
print(node.ApplySoftTokens.INPUT_TYPES()["required"]["tokens"][0], list(node.NODE_CLASS_MAPPINGS))
assert not {name for name in sys.modules if name.startswith(("softrepa_pipeline", "diffusers", "transformers"))}
"""


def test_an_exported_folder_is_a_node_with_its_tokens(tmp_path: Path) -> None:
    tokens = write_tokens(tmp_path / "my_tokens.safetensors", "sd15")
    arguments = ["export", "--format", "comfyui", "--tokens", str(tokens), "--out", str(tmp_path / "softrepa")]
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 0, done.output
    command = [sys.executable, "-c", LOAD, str(tmp_path / "softrepa")]
    environment = {"PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    ran = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path, check=False)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.strip() == "['my_tokens.safetensors'] ['SoftRepaApplySoftTokens']"
    again = CliRunner().invoke(main, arguments)
    assert "is there already" in again.output
