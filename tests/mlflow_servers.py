"""Real MLflow servers, which tests kill."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path


def wait(until: Callable[[], bool], seconds: float = 240) -> None:
    deadline = time.monotonic() + seconds
    while not until():
        assert time.monotonic() < deadline, "it does not happen"
        time.sleep(0.02)


class Server:
    """An MLflow server on SQLite, inside a `with` block; started again it has the same port and store."""

    def __init__(self, folder: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self._port = free.getsockname()[1]
        self._folder = folder
        self.address = f"http://127.0.0.1:{self._port}"

    def __enter__(self) -> Server:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def start(self) -> None:
        """Until it answers."""
        store = f"sqlite:///{self._folder / 'server.db'}"
        command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", store, "--workers", "1"]
        command += ["--default-artifact-root", str(self._folder / "artifacts")]
        command += ["--host", "127.0.0.1", "--port", str(self._port)]
        environment = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true"}
        log = self._folder / "server.log"
        with log.open("a") as file:
            self._process = subprocess.Popen(command, env=environment, stdout=file, stderr=file, start_new_session=True)
        wait(lambda: self.is_up() or self._process.poll() is not None)
        assert self.is_up(), log.read_text()

    def kill(self) -> None:
        """kill -9, workers and all."""
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        wait(lambda: not self.is_up())

    def is_up(self) -> bool:
        with socket.socket() as client:
            return client.connect_ex(("127.0.0.1", self._port)) == 0
