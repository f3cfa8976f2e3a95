"""A folder that stock diffusers loads with the tokens active; this package is not needed there."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from importlib.resources import files
from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline
from safetensors.torch import save_file

from softrepa_pipeline.backbones.load import check_family, model_index
from softrepa_pipeline.soft_tokens import SoftTokens, load_soft_tokens

_COMPONENT = "soft_tokens"
_CLASSES = {"sd15": "SD15SoftTokensPipeline", "sdxl": "SDXLSoftTokensPipeline", "sd3": "SD3SoftTokensPipeline"}


def export_diffusers(tokens: Path, base: str, folder: Path, copy_base: bool = False) -> Path:
    """Write `folder`: the base's components, as links unless they shall be copied, the tokens, and two small modules.

    `DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)` loads it. A base of the hub is downloaded.

    Raises:
        FileNotFoundError: the tokens or the base are not there.
        FileExistsError: the folder is there already.
        ValueError: the base is of another family than the tokens.
    """
    if folder.exists():
        raise FileExistsError(f"{folder} is there already; remove it, or name another --out")
    loaded, metadata = load_soft_tokens(tokens)
    source = _folder_of(base)
    index = model_index(str(source)) or {}
    check_family(index, base, metadata["family"])
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for name, value in index.items():
        if isinstance(value, list) and value[0] is not None:
            _bring(source / name, partial / name, copy_base)
    _write_component(loaded, partial / _COMPONENT)
    _copy("pipeline.py", partial)
    named = {**index, "_class_name": ["pipeline", _CLASSES[metadata["family"]]], _COMPONENT: [_COMPONENT, "SoftTokens"]}
    (partial / "model_index.json").write_text(json.dumps(named, indent=2) + "\n")
    partial.rename(folder)
    return folder


def _folder_of(base: str) -> Path:
    if model_index(base) is not None:
        return Path(base).resolve()
    return Path(DiffusionPipeline.download(base))


def _bring(source: Path, target: Path, copy: bool) -> None:
    if copy:
        shutil.copytree(source, target)
    else:
        target.symlink_to(source, target_is_directory=True)


def _write_component(tokens: SoftTokens, folder: Path) -> None:
    folder.mkdir()
    config: dict[str, Any] = {"_class_name": "SoftTokens", **asdict(tokens.config)}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    tensors = {name: value.detach().contiguous() for name, value in tokens.state_dict().items()}
    save_file(tensors, folder / "diffusion_pytorch_model.safetensors", metadata={"format": "pt"})
    _copy(f"{_COMPONENT}.py", folder)


def _copy(name: str, folder: Path) -> None:
    (folder / name).write_text((files(__package__) / "standalone" / name).read_text("utf-8"))
