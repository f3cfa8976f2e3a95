"""The wheel, installed where no checkout is: `softrepa mine|train|evaluate`, and Kedro's run of the package."""

from __future__ import annotations

import json
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from omegaconf import OmegaConf
from project_runs import ENVIRONMENT, ROOT

from softrepa_pipeline.commands import main
from softrepa_pipeline.parameters import read_parameters
from softrepa_pipeline.soft_tokens import load_soft_tokens

EMBEDDED = ROOT / "data/06_models/embedded"
SETTINGS: dict[str, Any] = {
    "family": "sd15",
    "dataset": str(ROOT / "data/01_raw/coco_sample"),
    "model": {"base": str(EMBEDDED / "sd15")},
    "clip": {"model": str(EMBEDDED / "clip")},
    "folders": {"tokens": "tokens", "evaluation": "report"},
    "mine": {"min_fit": None},
    "fit": {"num_steps": 3, "batch_size": 4, "held_out_images": 4, "learning_rate": 2e-3},
    "sampling": {"settings": {"num_inference_steps": 2}},
    "evaluation": {
        "prompts": "prompts.txt",
        "scorers": [{"name": "clip_score", "model": str(EMBEDDED / "clip")}],
        "sets": [],
        "guidance_scales": [3.0],
        "strengths": [],
    },
}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT]
    subprocess.run(build, check=True, capture_output=True)
    (file,) = folder.glob("*.whl")
    return file


@pytest.fixture(scope="module")
def binaries(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of an environment with the wheel, which sees the packages that are installed here, but not the checkout."""
    folder = tmp_path_factory.mktemp("installed")
    venv.create(folder, with_pip=False)
    install = [
        sys.executable,
        "-m",
        "pip",
        "--python",
        folder / "bin/python",
        "install",
        "--no-deps",
        "--no-index",
        wheel,
    ]
    subprocess.run(install, check=True, capture_output=True)
    (own,) = folder.glob("lib/*/site-packages")
    (own / "shared.pth").write_text(sysconfig.get_path("purelib"))
    return folder / "bin"


def run(command: Path, *arguments: str, folder: Path) -> str:
    environment = {key: value for key, value in ENVIRONMENT.items() if key != "PYTHONPATH"}
    done = subprocess.run([command, *arguments], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def fails(command: Path, *arguments: str, folder: Path) -> str:
    with pytest.raises(AssertionError) as raised:
        run(command, *arguments, folder=folder)
    return str(raised.value)


def write_settings(folder: Path) -> None:
    OmegaConf.save(OmegaConf.create(SETTINGS), folder / "my.yml")
    (folder / "prompts.txt").write_text("a red circle\ntwo blue squares\n")


def test_the_wheel_brings_the_defaults_and_no_secrets(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    for file in (ROOT / "conf/base").iterdir():
        assert f"softrepa_pipeline/conf/base/{file.name}" in names
    assert not [name for name in names if "conf/local" in name]


def test_captions_and_images_are_mined_in_an_empty_folder(binaries: Path, tmp_path: Path) -> None:
    write_settings(tmp_path)
    first = run(binaries / "softrepa", "mine", "--config", "my.yml", folder=tmp_path)
    (negatives,) = (tmp_path / "data/03_primary").glob("coco_sample-*/negatives.parquet")
    assert pq.read_table(negatives).num_rows == 24
    assert f"negatives: {negatives.parent}" in first
    assert not list(binaries.parent.glob("lib/*/data"))


@pytest.mark.slow
def test_tokens_are_trained_and_evaluated_in_an_empty_folder(binaries: Path, tmp_path: Path) -> None:
    write_settings(tmp_path)
    assert "nothing was trained in" in fails(binaries / "softrepa", "evaluate", "--config", "my.yml", folder=tmp_path)
    run(binaries / "softrepa", "train", "--config", "my.yml", folder=tmp_path)
    _, metadata = load_soft_tokens(tmp_path / "tokens/soft_tokens.safetensors", "sd15")
    assert json.loads(metadata["settings"])["num_steps"] == 3
    again = run(binaries / "softrepa", "train", "--config", "my.yml", folder=tmp_path)
    assert [f"{stage}: skipped" in again for stage in ("ingest", "mine", "fit")] == [True] * 3
    run(binaries / "softrepa", "evaluate", "--config", "my.yml", folder=tmp_path)
    assert json.loads((tmp_path / "report/evaluation.json").read_text())["num_prompts"] == 2
    assert "two blue squares" in (tmp_path / "report/report.html").read_text()


@pytest.mark.slow
def test_kedro_runs_the_package_in_an_empty_folder(binaries: Path, tmp_path: Path) -> None:
    sizes = "world.train_images=8,world.validation_prompts_per_task=1,world.test_prompts_per_task=1"
    run(binaries / "python", "-m", "softrepa_pipeline", "--pipeline", "ingest", "--params", sizes, folder=tmp_path)
    assert json.loads((tmp_path / "data/02_intermediate/shapes/pairs.json").read_text())["num_images"] == 8
    assert (tmp_path / "mlflow.db").is_file()


def test_a_file_changes_what_it_names(tmp_path: Path) -> None:
    write_settings(tmp_path)
    found = read_parameters(None, file=tmp_path / "my.yml")
    assert found["model"] == {**read_parameters(None)["model"], "family": "sd15", "base": str(EMBEDDED / "sd15")}
    assert found["source"]["dataset"] == SETTINGS["dataset"]
    assert found["fit"]["learning_rate"] == 0.002
    assert read_parameters(None, "fit.num_steps=5", tmp_path / "my.yml")["fit"]["num_steps"] == 5


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("fitt: {num_steps: 3}", "unknown parameter fitt; did you mean fit?"),
        ("folders: {tokns: here}", r"unknown parameter folders.tokns; did you mean folders.tokens\?"),
        ("source: {datset: here}", r"unknown parameter source.datset; did you mean source.dataset\?"),
        ("clip: here", "clip must be a mapping of names to values, not 'here'"),
        ("- fit", r"my.yml must be a mapping of names to values, not \['fit'\]"),
        ("fit: [", "my.yml is not YAML: .* line"),
    ],
)
def test_a_wrong_file_is_told_by_name(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "my.yml").write_text(content)
    with pytest.raises(ValueError, match=message):
        read_parameters(None, file=tmp_path / "my.yml")


def test_what_a_later_stage_would_refuse_is_told_at_once(tmp_path: Path) -> None:
    (tmp_path / "my.yml").write_text("fit: {num_step: 3}")
    done = CliRunner().invoke(main, ["mine", "--config", str(tmp_path / "my.yml")])
    assert done.exit_code == 1
    assert "unknown parameter fit.num_step; did you mean fit.num_steps?" in done.output
