"""A base of random weights, tokens for it, and what they are asked for: shared by the tests of serving."""

from __future__ import annotations

import socket
import threading
from pathlib import Path

import torch
import uvicorn
from starlette.types import ASGIApp

from softrepa_pipeline.backbones import ModelConfig
from softrepa_pipeline.serving.painter import Defaults
from softrepa_pipeline.soft_tokens import SoftTokens, SoftTokensConfig, save_soft_tokens

DEFAULTS = Defaults(guidance=4.0, steps=2)


def base_of(folder: Path | str, family: str = "sd3") -> ModelConfig:
    return ModelConfig(family, str(folder), max_sequence_length=0)


def write_tokens(path: Path) -> Path:
    """Tokens of the SD3 shape that change the image visibly."""
    tokens = SoftTokens(SoftTokensConfig(("0", "1"), 4, 128, 10), torch.Generator().manual_seed(0))
    with torch.no_grad():
        tokens.base.mul_(50)
    save_soft_tokens(tokens, path, {"family": "sd3", "objective": "softrepa", "licence": "Apache-2.0"})
    return path


class Served:
    """An app behind a real HTTP server on a free port of this machine, inside a `with` block."""

    def __init__(self, app: ASGIApp) -> None:
        self._socket = socket.socket()
        self._socket.bind(("127.0.0.1", 0))
        self.address = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        self._server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
        self._thread = threading.Thread(target=self._server.run, args=([self._socket],))

    def __enter__(self) -> Served:
        self._socket.listen(128)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.should_exit = True
        self._thread.join()
        self._socket.close()
