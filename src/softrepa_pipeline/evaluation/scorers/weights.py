"""Where a scorer's weights come from: a folder, or the hub at a pinned revision; files of tensors only, never code."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from huggingface_hub import hf_hub_download
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from softrepa_pipeline.evaluation.scorers.base import ScorerConfig


class MissingWeightsError(FileNotFoundError):
    """A scorer's weights are neither where its settings say nor on the hub within reach."""


@dataclass(frozen=True)
class Source:
    """A local folder, or a hub id with the revision that is taken from it."""

    model: str
    revision: str | None = None

    def __str__(self) -> str:
        return self.model if self.is_folder else f"{self.model}@{self.revision or 'main'}"

    @property
    def is_folder(self) -> bool:
        return Path(self.model).is_absolute() or self.model.startswith(".") or Path(self.model).is_dir()

    @property
    def options(self) -> dict[str, str | None]:
        """What `from_pretrained` takes beside the model's name."""
        return {} if self.is_folder else {"revision": self.revision}

    def file(self, name: str) -> Path:
        """A single file, fetched where the source is on the hub.

        Raises:
            FileNotFoundError: it is not there.
        """
        if not self.is_folder:
            return Path(hf_hub_download(self.model, name, revision=self.revision))
        path = Path(self.model) / name
        if not path.is_file():
            raise FileNotFoundError(f"no file {path}")
        return path

    def companion(self, marker: str, otherwise: Source) -> Source:
        """Where the files beside the weights are: this folder where it holds `marker`, else their own pinned source."""
        return self if self.is_folder and (Path(self.model) / marker).is_file() else otherwise


def source_of(config: ScorerConfig, pinned: Source | None) -> Source:
    """The source that the settings name, else the pinned one.

    Raises:
        MissingWeightsError: the settings name none and there is none to fall back on.
    """
    if config.model is not None:
        return Source(config.model, config.revision)
    if pinned is None:
        raise MissingWeightsError("its weights are on no hub; download them (docs/metrics.md) and set its `model`")
    return Source(pinned.model, config.revision or pinned.revision)


@contextmanager
def loading(source: Source) -> Iterator[None]:
    """Say where weights were looked for, and where to put them, if loading them fails.

    Raises:
        MissingWeightsError: a file is not there, cannot be fetched, or is not what it should be.
    """
    try:
        yield
    except MissingWeightsError:
        raise
    except OSError as error:
        advice = (
            "put its files there" if source.is_folder else "download it to a folder and set the scorer's `model` to it"
        )
        message = f"no weights at {source}: {advice} (docs/metrics.md lists the files). {_first_line(error)}"
        raise MissingWeightsError(message) from error


def _first_line(error: OSError) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def read_tensors(path: Path) -> dict[str, Tensor]:
    """A state dict from a `.safetensors` file, or from a `.pt`/`.pth` file of tensors alone.

    Raises:
        ValueError: the file is damaged, or holds anything but tensors and plain containers.
    """
    try:
        state: dict[str, Any] = (
            load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
        )
    except (SafetensorError, UnpicklingError, RuntimeError, EOFError) as error:
        raise ValueError(f"{path} is damaged or holds more than tensors; fetch it again: {error}") from error
    return state.get("state_dict", state)
