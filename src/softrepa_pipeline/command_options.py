"""What commands have in common: the options of those that open a base model, and the project's parameters."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from softrepa_pipeline.backbones import ModelConfig

_EMBEDDED = Path("data/06_models/embedded")
# Published sampling settings (docs/method.md): steps and guidance.
SAMPLING = {"sd15": (30, 7.0), "sdxl": (30, 7.0), "sd3": (28, 4.0)}
FAMILIES = tuple(SAMPLING)

_OPTIONS = (
    click.option("--family", type=click.Choice(FAMILIES), required=True),
    click.option("--base", help="Diffusers folder or hub id; the embedded model of the family unless given."),
    click.option("--device", default="cpu", show_default=True),
    click.option("--dtype", default="float32", show_default=True),
    click.option("--max-sequence-length", type=int, help="SD3: T5's tokens."),
)

env_option = click.option("--env", help="Of the configuration, as for kedro run.")


def base_options(command: Callable[..., None]) -> Callable[..., None]:
    """Options that `model_config` takes."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def model_config(
    family: str, base: str | None, device: str, dtype: str, max_sequence_length: int | None
) -> ModelConfig:
    """The base that those options name."""
    from softrepa_pipeline.backbones import ModelConfig

    if max_sequence_length is None:
        max_sequence_length = 0 if base is None else 256
    return ModelConfig(family, base or str(_EMBEDDED / family), dtype, device, max_sequence_length=max_sequence_length)


def read_parameters(environment: str | None, changes: str = "", file: Path | None = None) -> dict[str, Any]:
    """What `kedro run` would give its stages, read by a process of its own: this one knows no Kedro.

    Raises:
        ValueError: see `parameters.read_parameters`.
    """
    options = {"--env": environment, "--params": changes, "--config": file}
    given = [str(part) for name, value in options.items() if value for part in (name, value)]
    command = [sys.executable, "-m", "softrepa_pipeline.parameters", *given]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ValueError(done.stderr.strip().rpartition("error: ")[2])
    return json.loads(done.stdout.splitlines()[-1])
