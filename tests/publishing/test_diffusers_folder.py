from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result

from softrepa_pipeline import load_pipeline
from softrepa_pipeline.commands import main
from softrepa_pipeline.soft_tokens import SoftTokens, SoftTokensConfig, save_soft_tokens

WIDTHS = {"sd15": 96, "sdxl": 128, "sd3": 128}
PROMPT = "two blue squares left of a green triangle"
# Runs without this package: what draws is stock diffusers and the folder.
DRAW = """
import sys
import numpy as np, torch
from diffusers import DiffusionPipeline
torch.set_num_threads(1)
folder, family, prompt, target = sys.argv[1:]
pipeline = DiffusionPipeline.from_pretrained(folder, trust_remote_code=True, dtype=torch.float32)
assert not any(name.startswith("softrepa") for name in sys.modules)
options = {"max_sequence_length": 0} if family == "sd3" else {}
images = []
for strength in (0.0, 1.0, 0.5):
    pipeline.soft_tokens.strength = strength
    options["generator"] = torch.Generator().manual_seed(3)
    images.append(pipeline(prompt, num_inference_steps=3, guidance_scale=3.0, output_type="np", **options).images[0])
np.save(target, np.stack(images))
"""


def write_tokens(path: Path, family: str, width: int | None = None) -> Path:
    layers = ("0", "2") if family == "sd3" else ("down", "mid")
    config = SoftTokensConfig(layers, 4, width or WIDTHS[family], 10, shared=family == "sdxl")
    if family == "sd15":
        config = SoftTokensConfig(("down.0", "mid.0"), 4, width or WIDTHS[family], 0)
    tokens = SoftTokens(config, torch.Generator().manual_seed(0))
    with torch.no_grad():
        tokens.base.mul_(50)
    save_soft_tokens(tokens, path, {"family": family})
    return path


def export(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["export", *(str(argument) for argument in arguments)])


@pytest.mark.parametrize("family", ["sd15", "sdxl", "sd3"])
def test_stock_diffusers_draws_from_the_folder_what_this_package_draws(
    family: str, model_folders: dict[str, Path], tmp_path: Path
) -> None:
    tokens = write_tokens(tmp_path / "tokens.safetensors", family)
    done = export("--tokens", tokens, "--base", model_folders[family], "--out", tmp_path / "folder")
    assert done.exit_code == 0, done.output
    command = [sys.executable, "-c", DRAW, tmp_path / "folder", family, PROMPT, tmp_path / "images.npy"]
    environment = {"HOME": str(tmp_path), "OMP_NUM_THREADS": "1", "PATH": ""}
    ran = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert ran.returncode == 0, ran.stderr[-2000:]

    pipeline = load_pipeline(model_folders[family], tokens)
    options = {"max_sequence_length": 0} if family == "sd3" else {}
    drawn = np.load(tmp_path / "images.npy")
    for image, strength in zip(drawn, (0.0, 1.0, 0.5), strict=True):
        pipeline.soft_tokens.strength = strength
        generator = torch.Generator().manual_seed(3)
        ours = pipeline(
            PROMPT, generator=generator, num_inference_steps=3, guidance_scale=3.0, output_type="np", **options
        ).images[0]
        np.testing.assert_array_equal(image, ours)
    assert (drawn[0] != drawn[1]).any()
    assert (drawn[2] != drawn[1]).any()


def test_the_base_is_linked_or_copied(model_folders: dict[str, Path], tmp_path: Path) -> None:
    tokens = write_tokens(tmp_path / "tokens.safetensors", "sd3")
    for name, extra in (("linked", ()), ("copied", ("--copy-base",))):
        done = export("--tokens", tokens, "--base", model_folders["sd3"], "--out", tmp_path / name, *extra)
        assert done.exit_code == 0, done.output
    assert (tmp_path / "linked/transformer").is_symlink()
    copied = tmp_path / "copied/transformer"
    assert not copied.is_symlink()
    weights = "diffusion_pytorch_model.safetensors"
    assert (copied / weights).read_bytes() == (model_folders["sd3"] / "transformer" / weights).read_bytes()
    assert not list(tmp_path.glob("*.partial"))


def test_bad_requests_say_what_to_do(model_folders: dict[str, Path], tmp_path: Path) -> None:
    tokens = write_tokens(tmp_path / "tokens.safetensors", "sd3")
    (tmp_path / "there").mkdir()
    for base, out, message in (
        (model_folders["sd3"], "there", "is there already"),
        (model_folders["sdxl"], "new", "family sd3 needs a StableDiffusion3Pipeline"),
        ("/none", "new", "no model folder at /none"),
    ):
        done = export("--tokens", tokens, "--base", base, "--out", tmp_path / out)
        assert done.exit_code == 1
        assert message in done.output
        assert not (tmp_path / "new").exists()
