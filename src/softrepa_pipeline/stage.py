"""Skipping of finished stages: a stage's fingerprint is stored beside its outputs."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from softrepa_pipeline.files import write_whole

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

logger = logging.getLogger(__name__)

_PACKAGE = Path(__file__).parent
_MANIFEST = "stage.json"


@dataclass(frozen=True)
class Stage:
    """One stage's identity: where it writes, what it reads (digests), how it is set, and the code that does it."""

    name: str
    folder: Path
    inputs: dict[str, str]
    parameters: DataclassInstance
    code: tuple[str, ...]

    @property
    def fingerprint(self) -> str:
        settings = asdict(self.parameters)
        parts = {"inputs": self.inputs, "parameters": settings, "code": code_digest(self.code)}
        return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]


def code_digest(modules: tuple[str, ...]) -> str:
    """Hash the sources of modules or sub-packages of this package, named relative to it."""
    digest = hashlib.sha256()
    for module in sorted(modules):
        root = _PACKAGE / module
        for file in sorted(root.rglob("*.py")) if root.is_dir() else [root.with_suffix(".py")]:
            digest.update(file.relative_to(_PACKAGE).as_posix().encode() + file.read_bytes())
    return digest.hexdigest()[:16]


def run_stage(stage: Stage, compute: Callable[[], dict[str, Any]], force: bool = False) -> dict[str, Any]:
    """Return the stage's stored result where its fingerprint still holds, else compute and store it.

    The result must be JSON; `skipped` in it says whether the stage was skipped. Files that `compute` writes are only
    trusted once the result is stored, so a stage that was interrupted runs again.
    """
    store = stage.folder / _MANIFEST
    fingerprint = stage.fingerprint
    if not force and store.is_file():
        stored = json.loads(store.read_text())
        if stored["fingerprint"] == fingerprint:
            logger.info("%s: skipped, nothing it depends on has changed (%s)", stage.name, stage.folder)
            return {**stored["result"], "skipped": True}
    store.unlink(missing_ok=True)
    result = compute()
    write_json(store, {"fingerprint": fingerprint, "result": result})
    return {**result, "skipped": False}


def stored_result(folder: Path) -> dict[str, Any] | None:
    """What the stage that writes into this folder found last; None where none has finished there."""
    store = folder / _MANIFEST
    return json.loads(store.read_text())["result"] if store.is_file() else None


def source_digest(source: str, revision: str | None = None) -> str:
    """Identity of a local file or folder by its content, or of a hub id by name and revision."""
    digest = hashlib.sha256()
    root = Path(source)
    if not root.exists():
        digest.update(f"{source}@{revision}".encode())
    for file in sorted(path for path in (root.rglob("*") if root.is_dir() else [root]) if path.is_file()):
        digest.update(file.relative_to(root.parent).as_posix().encode())
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()[:16]


def write_json(path: Path, value: object) -> None:
    """Write JSON under a temporary name, then rename, so that no reader sees half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, (json.dumps(value, indent=2) + "\n").encode())
