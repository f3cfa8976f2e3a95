"""Kedro runs of a copy of the project, as a user starts them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
KEDRO = Path(sys.executable).with_name("kedro")
# Each project has its own store, whatever this process was told. MLflow samples the machine every 10 seconds, in which
# a small run may have ended on a fast one.
ENVIRONMENT = {key: value for key, value in os.environ.items() if not key.startswith("MLFLOW_")} | {
    "MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL": "1"
}


def copy_project(folder: Path) -> Path:
    """A copy of the project without anything that a run has written."""
    for name in ("conf", "data/01_raw/coco_sample", "data/06_models/embedded"):
        shutil.copytree(ROOT / name, folder / name)
    (folder / "docs").mkdir()
    shutil.copytree(ROOT / "src", folder / "src", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    return folder


def kedro_run(project: Path, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([KEDRO, "run", *arguments], cwd=project, env=ENVIRONMENT, capture_output=True, text=True)
    assert not check or done.returncode == 0, done.stderr
    return done
