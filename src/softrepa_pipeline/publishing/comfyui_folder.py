"""A folder for ComfyUI's `custom_nodes`: the node, and tokens that it offers."""

from __future__ import annotations

import shutil
from importlib.resources import files
from pathlib import Path

from softrepa_pipeline.soft_tokens import load_soft_tokens


def export_comfyui(tokens: Path, folder: Path) -> Path:
    """Write `folder`; neither this package nor diffusers is needed there.

    Raises:
        FileNotFoundError, ValueError: the tokens are not there, or their file is damaged.
        FileExistsError: the folder is there already.
    """
    if folder.exists():
        raise FileExistsError(f"{folder} is there already; put further token files into {folder / 'tokens'}")
    load_soft_tokens(tokens)
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    (partial / "tokens").mkdir(parents=True)
    shutil.copyfile(tokens, partial / "tokens" / tokens.name)
    (partial / "__init__.py").write_text((files(__package__) / "standalone/comfyui.py").read_text("utf-8"))
    partial.rename(folder)
    return folder
