from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from dataclasses import asdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
import yaml
from click.testing import CliRunner, Result

from softrepa_pipeline.commands import main
from softrepa_pipeline.evaluation.statistics import Interval
from softrepa_pipeline.publishing.model_card import model_card, read_published
from softrepa_pipeline.soft_tokens import SoftTokens, SoftTokensConfig, save_soft_tokens

REPO = "somebody/soft-tokens"


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    config = SoftTokensConfig(("0", "2"), 4, 128, 10)
    metadata = {"family": "sd3", "objective": "softrepa", "base_model": "stabilityai/stable-diffusion-3-medium"}
    metadata |= {"base_digest": "abc123", "run_id": "run7", "licence": "Apache-2.0", "data": "coco"}
    metadata |= {"data_digest": "d1g35t", "settings": json.dumps({"num_steps": 500, "scale": 4.0})}
    file = tmp_path / "tokens.safetensors"
    save_soft_tokens(SoftTokens(config, torch.Generator().manual_seed(0)), file, metadata)
    return file


@pytest.fixture
def report(tokens: Path) -> Path:
    file = tokens.with_name("evaluation.json")
    file.write_text(json.dumps(evaluation_of(tokens)))
    return file


def evaluation_of(tokens: Path) -> dict[str, object]:
    better, worse, unclear = (
        asdict(Interval(*values))
        for values in ((0.1, 0.05, 0.15, 0.001), (-0.2, -0.3, -0.1, 0.001), (0.0, -0.1, 0.1, 0.9))
    )
    tasks = {"colors": better, "counting": worse, "position": unclear}
    arms = {"overall": 0.5, "tasks": dict.fromkeys(tasks, 0.5)}
    measures = {
        "verifier": {
            "model": "verifier",
            "scale": 100.0,
            "base": 0.5,
            "soft": 0.6,
            "delta": better,
            "fewer_is_better": False,
            "p_holm": 0.0004,
        },
        "clip_score": {
            "model": "/home/me/secret/clip",
            "scale": 1.0,
            "base": 57.9,
            "soft": 58.9,
            "delta": better,
            "fewer_is_better": False,
            "p_holm": 0.01,
        },
        "repetition_index": {
            "model": "objects",
            "scale": 1.0,
            "base": 0.12,
            "soft": 0.22,
            "delta": better,
            "fewer_is_better": True,
            "p_holm": 0.02,
        },
        "image_reward": {"not_measured": "its weights are not here"},
    }
    return {
        "family": "sd3",
        "objective": "softrepa",
        "tokens_sha256": hashlib.sha256(tokens.read_bytes()).hexdigest(),
        "prompts": "geneval",
        "num_prompts": 553,
        "seeds_per_prompt": 4,
        "num_trainings": 1,
        "decided_by": "verifier",
        "scale": 100.0,
        "base": arms,
        "soft": arms,
        "delta": {"overall": better, "tasks": tasks},
        "guidance": {"base": 4.0, "soft": [4.5]},
        "measures": measures,
        "sets": {"cmmd": {"base": 0.3, "soft": 0.2}},
    }


def push(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["push", *(str(argument) for argument in arguments)])


def test_dry_run_shows_the_whole_card_and_every_file(tokens: Path, report: Path) -> None:
    done = push("--tokens", tokens, "--repo", REPO, "--report", report, "--dry-run", "--data-licence", "CC BY 4.0")
    assert done.exit_code == 0, done.output
    _, front, text = done.output.split("---\n", 2)
    assert yaml.safe_load(front) == {
        "base_model": "stabilityai/stable-diffusion-3-medium",
        "library_name": "diffusers",
        "license": "apache-2.0",
        "pipeline_tag": "text-to-image",
        "tags": ["text-to-image", "diffusion", "soft-tokens", "softrepa", "sd3", "arxiv:2503.08250"],
    }
    for line in (
        "| colors | 50.0 | 50.0 | +10.0 [+5.0, +15.0] |",
        "| clip score (clip) | 57.9 | 58.9 | +0.1 [+0.05, +0.15] | p = 0.010 |",
        "| image reward | | | not measured: its weights are not here | |",
        "| cmmd, distance from real images | 0.300 | 0.200 | no interval | |",
        "- **Counting**: -20.0 [-30.0, -10.0],\n  worse than the base.",
        "- **Repetition index** is worse: +0.1 [+0.05, +0.15].",
        "- No clear difference from the base: position.",
        "| digest of its pairs | d1g35t |",
        "| licence of its images and captions | CC BY 4.0 |",
        "| scale | 4.0 |",
        f"{tokens.stat().st_size:>12,} bytes  soft_tokens.safetensors",
        "bytes  README.md",
        "bytes  evaluation.json",
        "nothing was sent",
    ):
        assert line in text, line
    assert "/home/me" not in done.output


def test_a_card_without_figures_says_so(tmp_path: Path) -> None:
    file = tmp_path / "tokens.safetensors"
    save_soft_tokens(
        SoftTokens(SoftTokensConfig(("down",), 4, 96, 0, shared=True)),
        file,
        {"family": "sd15", "licence": "House rules", "base_model": "sd15"},
    )
    card = model_card(read_published(file), REPO)
    front = yaml.safe_load(card.split("---\n")[1])
    assert (front["license"], front["license_name"]) == ("other", "house-rules")
    assert "base_model" not in front, "a folder's name is not the hub's"
    for text in ("Not evaluated", "**Counting** was not measured", "not stated in the file", "does not say how"):
        assert text in card


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokens_sha256": "0" * 64}, "is of other soft tokens"),
        ({"objective": "agsm"}, "sd3 agsm"),
        ({"measures": None}, "is no evaluation of this version"),
    ],
)
def test_an_evaluation_of_other_tokens_is_refused(tokens: Path, report: Path, change: dict, message: str) -> None:
    report.write_text(json.dumps({**evaluation_of(tokens), **change}))
    done = push("--tokens", tokens, "--repo", REPO, "--report", report, "--dry-run")
    assert done.exit_code == 1
    assert message in done.output
    assert "Traceback" not in done.output


@pytest.mark.parametrize("repo", ["tokens", "a/b/c", "some body/x"])
def test_a_repository_s_name_is_checked(tokens: Path, repo: str) -> None:
    done = push("--tokens", tokens, "--repo", repo, "--dry-run")
    assert done.exit_code == 1
    assert "--repo" in done.output


def test_without_a_token_nothing_is_sent(tokens: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("softrepa_pipeline.publishing.hub.get_token", lambda: None)
    done = push("--tokens", tokens, "--repo", REPO)
    assert done.exit_code == 1
    assert "set HF_TOKEN" in done.output


class Hub(BaseHTTPRequestHandler):
    """The requests of a commit, as the hub answers them; `received` is what it would hold."""

    received: dict[str, bytes]
    authorization: str

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        type(self).authorization = self.headers["Authorization"]
        if self.path == "/api/repos/create":
            assert json.loads(body)["name"] == "soft-tokens"
            return self._answer({"url": f"http://{self.headers['Host']}/{REPO}"})
        if self.path == "/api/validate-yaml":
            return self._answer({"errors": [], "warnings": []})
        if self.path.startswith(f"/api/models/{REPO}/preupload/"):
            asked = json.loads(body)["files"]
            return self._answer(
                {"files": [{"path": own["path"], "uploadMode": "regular", "shouldIgnore": False} for own in asked]}
            )
        assert self.path.startswith(f"/api/models/{REPO}/commit/main")
        lines = [json.loads(line) for line in body.splitlines()]
        for line in lines:
            if line["key"] == "file":
                self.received[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
        return self._answer({"commitUrl": f"http://{self.headers['Host']}/{REPO}/commit/1", "commitOid": "1"})

    def _answer(self, value: object) -> None:
        content = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Hub]]:
    Hub.received = {}
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    yield Hub
    server.shutdown()


def test_one_commit_carries_card_tokens_and_evaluation(
    hub: type[Hub], tokens: Path, report: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    done = push("--tokens", tokens, "--repo", REPO, "--report", report)
    assert done.exit_code == 0, done.output
    assert done.output.strip().endswith(f"/{REPO}/commit/1")
    assert set(hub.received) == {"README.md", "soft_tokens.safetensors", "evaluation.json"}
    assert hub.received["soft_tokens.safetensors"] == tokens.read_bytes()
    assert hub.authorization == "Bearer hf_secret"
