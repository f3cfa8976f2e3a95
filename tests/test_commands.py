from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from PIL import Image, ImageChops

from softrepa_pipeline.commands import main
from softrepa_pipeline.parameters import read_parameters
from softrepa_pipeline.soft_tokens import SoftTokens, SoftTokensConfig, save_soft_tokens

WIDTHS = {"sd15": 96, "sdxl": 128, "sd3": 128}


def run(*arguments: str | Path) -> str:
    done = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert done.exit_code == 0, done.output
    return done.output


def write_tokens(path: Path, family: str) -> Path:
    layers = ("0", "1") if family == "sd3" else ("down",)
    config = SoftTokensConfig(layers, 4, WIDTHS[family], 10, shared=family != "sd3")
    tokens = SoftTokens(config, torch.Generator().manual_seed(0))
    with torch.no_grad():
        tokens.base.mul_(50)
    save_soft_tokens(tokens, path, {"family": family, "objective": "agsm", "licence": "Apache-2.0"})
    return path


@pytest.mark.parametrize("family", ["sd15", "sdxl", "sd3"])
def test_sample_draws_prompts_with_and_without_tokens(
    family: str, model_folders: dict[str, Path], tmp_path: Path
) -> None:
    (tmp_path / "prompts.txt").write_text("two blue squares\n\na green triangle\n")
    tokens = write_tokens(tmp_path / "tokens.safetensors", family)
    common = ["sample", "--family", family, "--base", model_folders[family], "--prompt", "a red circle", "--seeds", "2"]
    common += ["--prompts-file", tmp_path / "prompts.txt", "--steps", "2", "--max-sequence-length", "0"]
    pictures = {}
    for name, extra in {
        "base": [],
        "none": ["--tokens", tokens, "--strength", "0"],
        "soft": ["--tokens", tokens],
        "more": ["--tokens", tokens, "--strength", "1.5"],
        "one branch": ["--tokens", tokens, "--conditional-only"],
        "neither": ["--tokens", tokens, "--conditional-only", "--strength", "0"],
    }.items():
        run(*common, *extra, "--output", tmp_path / name)
        pictures[name] = Image.open(tmp_path / name / "grid.png")
    assert pictures["base"].size == (64, 96)
    lines = [json.loads(line) for line in (tmp_path / "soft/metadata.jsonl").read_text().splitlines()]
    assert [line["prompt"] for line in lines][::2] == ["a red circle", "two blue squares", "a green triangle"]
    assert (tmp_path / "soft" / lines[3]["file_name"]).is_file()
    assert ImageChops.difference(pictures["base"], pictures["none"]).getbbox() is None
    assert ImageChops.difference(pictures["base"], pictures["soft"]).getbbox() is not None
    assert ImageChops.difference(pictures["soft"], pictures["more"]).getbbox() is not None
    assert ImageChops.difference(pictures["soft"], pictures["one branch"]).getbbox() is not None
    assert ImageChops.difference(pictures["base"], pictures["one branch"]).getbbox() is not None
    assert ImageChops.difference(pictures["base"], pictures["neither"]).getbbox() is None


def test_inspect_says_what_a_file_holds(tmp_path: Path) -> None:
    output = run("inspect", write_tokens(tmp_path / "tokens.safetensors", "sdxl"))
    for text in ("sdxl", "agsm", "Apache-2.0", "('down',)", "1,792", "shared"):
        assert text in output


def test_presets_lists_settings_and_results() -> None:
    output = run("presets")
    assert "published sd3 softrepa: 94.27 → 108.50" in output
    assert "embedded sd15 agsm" in output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sample", "--family", "sd3"], "nothing to draw: give --prompt or --prompts-file"),
        (["inspect", "none.safetensors"], "no soft tokens at none.safetensors"),
        (["sample", "--family", "sd3", "--prompt", "a", "--base", "/none"], "no model folder at /none"),
    ],
)
def test_wrong_input_ends_with_one_clear_line(arguments: list[str], message: str) -> None:
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 1
    assert f"Error: {message}" in done.output
    assert "Traceback" not in done.output


def test_tokens_of_another_family_are_refused(tmp_path: Path, model_folders: dict[str, Path]) -> None:
    tokens = write_tokens(tmp_path / "tokens.safetensors", "sd3")
    arguments = ["sample", "--family", "sdxl", "--base", str(model_folders["sdxl"]), "--prompt", "a", "--tokens"]
    done = CliRunner().invoke(main, [*arguments, str(tokens)])
    assert "holds soft tokens for family sd3, not for sdxl" in done.output


def table(*arguments: str | Path) -> dict[str, str]:
    lines = run("plan", *arguments).splitlines()
    return {line[:24].strip(): line[24:] for line in lines}


def test_plan_says_what_a_training_takes() -> None:
    execution = "execution.max_pairs_in_memory=4,execution.text_cache=true"
    rows = table("--params", f"family=sd15,fit.batch_size=2,{execution}", "--images", "4096")
    assert rows["steps"] == "400"
    assert rows["micro-batch"] == "whole rows, 2 at once (4 pairs)"
    # 4096 latents of 16 × 8 × 8 numbers in fp32.
    assert rows["disk: latents"] == "16.8 MB"
    assert rows["… text states"].endswith(" a caption; how many is known once mined")
    assert rows["… activations"].endswith("MiB (4 pairs × 1.61 MiB)")
    assert rows["… a step"].endswith("GFLOP")
    assert rows["time a step"].endswith(" s (measured)")
    assert rows["… in all"].endswith(" h:min:s")


def test_plan_counts_a_model_without_weights(model_folders: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(model_folders["sd3"], tmp_path / "sd3", ignore=shutil.ignore_patterns("*.safetensors"))
    rows = table("--env", "sd3", "--params", f"model.base={tmp_path / 'sd3'},fit.resolution=32", "--images", "118287")
    assert rows["steps"] == "59,144"
    assert rows["time"] == "measured only where the model's weights and device are at hand"
    assert "… highest" not in rows


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--env", "sd33"], "unknown environment sd33; did you mean sd3?"),
        (["--params", "famly=sd15"], "unknown parameter famly; did you mean family?"),
        (["--params", "fit.num_step=3"], "unknown parameter fit.num_step; did you mean fit.num_steps?"),
        (["--params", "family"], "--params takes name=value,name=value, not 'family'"),
        (["--params", "dataset=/none"], "data set /none has not been ingested, so that its size is not known"),
        (["--params", "model.base=/none", "--images", "9"], "no model folder at /none"),
    ],
)
def test_plan_names_what_is_wrong(arguments: list[str], message: str) -> None:
    done = CliRunner().invoke(main, ["plan", *arguments])
    assert done.exit_code == 1
    assert f"Error: {message}" in done.output


def test_plan_reads_what_kedro_run_would() -> None:
    found = read_parameters("sd3", "objective=agsm,fit.num_steps=7")
    assert found["fit"] == {"preset": "published", "objective": "agsm", "seed": 0, "num_steps": 7}
