"""The MLflow model: what is saved, what it draws, what it refuses, and `mlflow models serve` over HTTP."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import mlflow
import numpy as np
import pandas as pd
import pytest
import requests
import yaml
from mlflow.exceptions import MlflowException
from PIL import Image
from serving_samples import DEFAULTS, base_of, write_tokens

from softrepa_pipeline.inference import SamplingConfig, add_tokens, draw_batch
from softrepa_pipeline.serving import model as serving
from softrepa_pipeline.soft_tokens import load_soft_tokens

from conftest import load  # isort: skip


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tokens(tmp_path_factory.mktemp("tokens") / "soft_tokens.safetensors")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory, model_folders: dict[str, Path], tokens: Path) -> Path:
    path = tmp_path_factory.mktemp("models") / "model"
    serving.save(path, tokens, base_of(model_folders["sd3"]), DEFAULTS)
    return path


@pytest.fixture(scope="module")
def loaded(saved: Path) -> Any:
    before = sys.path.copy()
    yield mlflow.pyfunc.load_model(str(saved))
    sys.path[:] = before  # MLflow puts the model's own copy of the package there


@pytest.fixture(scope="module")
def moved(tmp_path_factory: pytest.TempPathFactory, tokens: Path) -> Path:
    """A model whose base is not where it was."""
    path = tmp_path_factory.mktemp("models") / "model"
    serving.save(path, tokens, base_of("/elsewhere/sd3"), DEFAULTS)
    return path


def pixels(png: str) -> np.ndarray:
    return np.array(Image.open(io.BytesIO(base64.b64decode(png, validate=True))))


def test_it_draws_what_sample_draws(loaded: Any, sd3_folder: Path, tokens: Path) -> None:
    backbone = load(sd3_folder, "sd3")
    prompts = ["a red circle", "two blue squares"]
    for strength in (0.0, 1.0, 0.5):
        drawn = loaded.predict(pd.DataFrame({"prompt": prompts}), params={"seed": 7, "strength": strength})
        with add_tokens(backbone, load_soft_tokens(tokens)[0], strength):
            expected = draw_batch(backbone, [(one, 0) for one in prompts], SamplingConfig(2, 2, seed=7), 4.0)
        for png, image in zip(drawn["image"], expected, strict=True):
            # Alone or in a batch, sums are added in another order.
            assert np.abs(pixels(png).astype(int) - image).max() <= 1


def test_tokens_guidance_and_steps_change_the_image(loaded: Any) -> None:
    changes: list[dict[str, float]] = [{}, {"strength": 0.0}, {"guidance": 1.0}, {"steps": 3}, {"seed": 1}]
    drawn = {loaded.predict(["a red circle"], params=change)["image"][0] for change in changes}
    assert len(drawn) == len(changes)


def test_a_list_a_column_of_any_name_and_one_text_are_the_same(loaded: Any) -> None:
    inputs = [["a red circle"], pd.DataFrame({"text": ["a red circle"]}), "a red circle"]
    assert len({loaded.predict(one)["image"][0] for one in inputs}) == 1


@pytest.mark.parametrize(
    ("prompts", "params", "message"),
    [
        (["a"], {"seed": -1}, "seed: Input should be greater than or equal to 0"),
        (["a"], {"seed": "x"}, "seed"),
        (["a"], {"strength": float("nan")}, "strength: Input should be a finite number"),
        (["a"], {"strength": 1.6}, "strength: Input should be less than or equal to 1.5"),
        (["a"], {"steps": 10_000}, "steps: Input should be less than or equal to 100"),
        (["a"], {"guidance": -0.1}, "guidance: Input should be greater than or equal to 0"),
        (["a", "  "], {}, "prompt: String should have at least 1 character"),
        (["a" * 1001], {}, "prompt: String should have at most 1000 characters"),
        ([None], {}, "prompt: Input should be a valid string"),
        (["a"] * 65, {}, "give 1 to 64 prompts, not 65"),
    ],
)
def test_what_is_out_of_bounds_is_the_callers_error(
    loaded: Any, prompts: list[Any], params: dict[str, Any], message: str
) -> None:
    with pytest.raises(MlflowException, match=message) as caught:
        loaded.predict(prompts, params=params)
    assert caught.value.error_code == "INVALID_PARAMETER_VALUE"
    assert caught.value.get_http_status_code() == 400


def test_a_model_pickles_nothing_and_holds_no_base(saved: Path, tokens: Path) -> None:
    kinds = {file.suffix for file in saved.rglob("*") if file.is_file() and "code" not in file.parts}
    assert kinds == {"", ".txt", ".yaml", ".json", ".py", ".safetensors"}
    assert [file.name for file in saved.rglob("*.safetensors")] == [tokens.name]
    described = yaml.safe_load((saved / "MLmodel").read_text())
    assert described["metadata"]["family"] == "sd3"
    assert described["signature"]["params"]
    assert described["saved_input_example_info"]
    assert f"torch=={serving.importlib.metadata.version('torch')}" in (saved / "requirements.txt").read_text()


def test_a_model_with_its_base_needs_nothing_else(
    sd3_folder: Path, tokens: Path, tmp_path: Path, loaded: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", sys.path.copy())
    shutil.copytree(sd3_folder, tmp_path / "base")
    serving.save(tmp_path / "model", tokens, base_of(tmp_path / "base"), DEFAULTS, copy_base=True)
    shutil.rmtree(tmp_path / "base")
    drawn = mlflow.pyfunc.load_model(str(tmp_path / "model")).predict(["a red circle"])
    assert drawn["image"][0] == loaded.predict(["a red circle"])["image"][0]


def test_another_base_is_named_when_it_is_loaded(
    moved: Path, sd3_folder: Path, loaded: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", sys.path.copy())
    with pytest.raises(FileNotFoundError, match="no model folder at /elsewhere/sd3"):
        mlflow.pyfunc.load_model(str(moved))
    found = mlflow.pyfunc.load_model(str(moved), model_config={"base": str(sd3_folder)})
    assert found.predict(["a red circle"])["image"][0] == loaded.predict(["a red circle"])["image"][0]


def test_only_a_folder_can_be_copied_and_families_must_agree(
    tokens: Path, model_folders: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"model\.base must be a folder for it to be copied, not stabilityai/sd3"):
        serving.save(tmp_path / "model", tokens, base_of("stabilityai/sd3"), DEFAULTS, copy_base=True)
    with pytest.raises(ValueError, match="holds soft tokens for family sd3, not for sdxl"):
        serving.save(tmp_path / "model", tokens, base_of(model_folders["sdxl"], "sdxl"), DEFAULTS)
    assert not (tmp_path / "model").exists()


def test_a_model_is_there_whole_or_not_at_all(tokens: Path, sd3_folder: Path, saved: Path, tmp_path: Path) -> None:
    (tmp_path / "model.partial/artifacts").mkdir(parents=True)  # as a killed process leaves it
    serving.save(tmp_path / "model", tokens, base_of(sd3_folder), DEFAULTS)
    assert [one.name for one in tmp_path.iterdir()] == ["model"]
    with pytest.raises(FileExistsError, match="is there already"):
        serving.save(saved, tokens, base_of(sd3_folder), DEFAULTS)


def test_a_registered_model_is_served_by_its_alias(
    store: str, tokens: Path, sd3_folder: Path, loaded: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", sys.path.copy())
    with mlflow.start_run(experiment_id=store):
        info = serving.log(tokens, base_of(sd3_folder), DEFAULTS, registered_model_name="soft_tokens")
    client = mlflow.MlflowClient()
    client.set_registered_model_alias("soft_tokens", "champion", info.registered_model_version)
    champion = mlflow.pyfunc.load_model("models:/soft_tokens@champion")
    assert champion.predict(["a red circle"])["image"][0] == loaded.predict(["a red circle"])["image"][0]


def test_more_requests_than_may_wait_are_turned_away(loaded: Any) -> None:
    model = loaded.unwrap_python_model()
    with ThreadPoolExecutor(serving.MAX_REQUESTS) as pool:
        with model._painter._turn:  # as a drawing that takes long
            asked = [pool.submit(loaded.predict, ["a red circle"]) for _ in range(serving.MAX_REQUESTS)]
            while model._places._value:
                time.sleep(0.01)
            with pytest.raises(MlflowException, match="busy") as caught:
                loaded.predict(["a red circle"])
        assert caught.value.get_http_status_code() == 503
        assert len({one.result()["image"][0] for one in asked}) == 1
    assert len(loaded.predict(["a red circle"])) == 1


@pytest.mark.slow
def test_mlflow_serves_it_over_http(moved: Path, sd3_folder: Path, loaded: Any, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    program = [str(Path(sys.executable).with_name("mlflow")), "models", "serve", "-m", str(moved)]
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    # The model's own copy of the package is what serves.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"PATH": path}
    environment["SERVING_MODEL_CONFIG"] = json.dumps({"base": str(sd3_folder)})
    with (tmp_path / "log").open("w") as log:
        server = subprocess.Popen(
            [*program, "--env-manager", "local", "--host", "127.0.0.1", "--port", str(port)],
            env=environment,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    address = f"http://127.0.0.1:{port}"
    try:
        _wait_for(address + "/ping", server, tmp_path / "log")
        for body in (
            {"inputs": ["a red circle"], "params": {"seed": 3}},
            {"dataframe_split": {"columns": ["prompt"], "data": [["a red circle"]]}, "params": {"seed": 3}},
        ):
            answer = requests.post(address + "/invocations", json=body, timeout=60)
            assert answer.status_code == 200, answer.text
            expected = loaded.predict(["a red circle"], params={"seed": 3})["image"][0]
            assert answer.json()["predictions"] == [{"image": expected}]
        for params in ({"seed": -1}, {"strength": 9.0}, {"steps": "many"}):
            answer = requests.post(address + "/invocations", json={"inputs": ["a"], "params": params}, timeout=60)
            assert answer.status_code == 400
            assert answer.json()["error_code"] == "INVALID_PARAMETER_VALUE"
            assert "Traceback" not in answer.text
        answers = asyncio.run(ask_fifty(address + "/invocations"))
        statuses = Counter(answer.status_code for answer in answers)
        assert set(statuses) <= {200, 503}
        assert statuses[200] >= 1
        busy = [answer.json() for answer in answers if answer.status_code == 503]
        assert all(one["error_code"] == "TEMPORARILY_UNAVAILABLE" for one in busy)
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(30)


async def ask_fifty(address: str) -> list[httpx2.Response]:
    async with httpx2.AsyncClient(timeout=120, limits=httpx2.Limits(max_connections=50)) as client:
        asked = [
            client.post(address, json={"inputs": ["a red circle"], "params": {"seed": seed}}) for seed in range(50)
        ]
        return await asyncio.gather(*asked)


def _wait_for(address: str, server: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(600):
        assert server.poll() is None, log.read_text()
        try:
            if requests.get(address, timeout=5).ok:
                return
        except requests.ConnectionError:
            time.sleep(0.5)
    raise AssertionError(log.read_text())
