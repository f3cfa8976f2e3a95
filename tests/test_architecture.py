"""Who may import whom: the contracts stand in pyproject.toml."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_import_contracts_are_kept() -> None:
    command = [Path(sys.executable).with_name("lint-imports"), "--no-cache"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


def test_tokens_objectives_and_backbones_need_torch_transformers_and_diffusers_alone() -> None:
    others = [
        "kedro",
        "mlflow",
        "jaxtyping",
        "pyarrow",
        "psutil",
        "faiss",
        "datasets",
        "pydantic",
        "scipy",
        "matplotlib",
        "click",
        "pandas",
    ]
    modules = ["soft_tokens", "objectives", "noising", "convert", "backbones", "inference"]
    script = f"""
import importlib, sys
sys.modules.update(dict.fromkeys({others!r}))
for module in {modules!r}:
    importlib.import_module("softrepa_pipeline." + module)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
