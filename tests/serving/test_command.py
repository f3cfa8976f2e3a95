"""`softrepa serve` as a process: it answers, and Ctrl-C ends it."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import requests
from click.testing import CliRunner
from serving_samples import write_tokens

from softrepa_pipeline.commands import main


def test_it_serves_until_it_is_interrupted(sd3_folder: Path, tmp_path: Path) -> None:
    tokens = write_tokens(tmp_path / "soft_tokens.safetensors")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    options = ["--family", "sd3", "--base", str(sd3_folder), "--max-sequence-length", "0", "--steps", "2"]
    command = [sys.executable, "-m", "softrepa_pipeline.commands", "serve", *options, "--tokens", str(tokens)]
    log = tmp_path / "log"
    with log.open("w") as file:
        server = subprocess.Popen([*command, "--port", port], stdout=file, stderr=file)
    try:
        for _ in range(600):
            assert server.poll() is None, log.read_text()
            try:
                page = requests.get(f"http://127.0.0.1:{port}/", timeout=5)
                break
            except requests.ConnectionError:
                time.sleep(0.2)
        assert "sd3 with soft_tokens.safetensors" in page.text
        assert "server" not in page.headers
        drawn = requests.post(f"http://127.0.0.1:{port}/api/draw", json={"prompt": "a red circle"}, timeout=60)
        assert drawn.content.startswith(b"\x89PNG")
        server.send_signal(signal.SIGINT)
        server.wait(60)
    finally:
        server.kill()
    assert "Traceback" not in log.read_text()
    assert f"softrepa serves sd3 on http://127.0.0.1:{port}" in log.read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tokens", "none.safetensors"], "no soft tokens at none.safetensors"),
        (["--tokens", "none.safetensors", "--steps", "101"], "steps must be from 1 to 100, not 101"),
        (["--tokens", "none.safetensors", "--guidance", "nan"], "guidance must be from 0 to 30, not nan"),
    ],
)
def test_wrong_input_ends_with_one_clear_line(arguments: list[str], message: str) -> None:
    done = CliRunner().invoke(main, ["serve", "--family", "sd3", *arguments])
    assert done.exit_code == 1
    assert f"Error: {message}" in done.output
    assert "Traceback" not in done.output
