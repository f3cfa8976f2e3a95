"""Curves and samples of a training in MLflow, with the tracking server there, away, and back."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path

import mlflow
import pytest
from mlflow import MlflowClient
from mlflow_servers import Server, wait
from PIL import Image

from softrepa_pipeline import tracking
from softrepa_pipeline.pipelines.fit import follow
from softrepa_pipeline.pipelines.fit.follow import following

GONE = "http://127.0.0.1:9"  # the discard port: nobody listens


@pytest.fixture
def run(store: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[tracking.NestedRun]:
    """A run, and a client that does not wait for a server that is away."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setattr(follow, "_INTERVAL", 0.05)
    here = mlflow.get_tracking_uri()
    with mlflow.start_run(experiment_id=store), tracking.nested_run("fit") as nested:
        yield nested
        mlflow.set_tracking_uri(here)


def write(folder: Path, losses: dict[int, float], **more: float) -> None:
    """The whole log of a training, at once."""
    records = [{"step": float(step), "loss": loss, **more} for step, loss in losses.items()]
    (folder / "metrics.partial").write_text("".join(json.dumps(record) + "\n" for record in records))
    (folder / "metrics.partial").replace(folder / "metrics.jsonl")


def curve(run: tracking.NestedRun, name: str = "loss") -> dict[int, float]:
    """The value of each step that came last."""
    assert run.run_id is not None
    history = MlflowClient().get_metric_history(run.run_id, name)
    return {metric.step: metric.value for metric in sorted(history, key=lambda metric: metric.timestamp)}


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == follow.__name__]


def test_every_step_and_every_validation_arrive_with_the_samples(
    run: tracking.NestedRun, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "samples").mkdir()
    with following(run, tmp_path):
        write(tmp_path, {step: step / 2 for step in range(4)})
        Image.new("RGB", (8, 8)).save(tmp_path / "samples" / "step-0000005.png")
        Image.new("RGB", (8, 8)).save(tmp_path / "samples" / "step-0000009.partial.png")
        wait(lambda: curve(run) == {0: 0.0, 1: 0.5, 2: 1.0, 3: 1.5})
        with (tmp_path / "metrics.jsonl").open("a") as file:
            file.write('{"step": 3.0, "validation_loss": 0.25}\n{"step": 4.0, "loss": 7.5')
    assert curve(run) == {0: 0.0, 1: 0.5, 2: 1.0, 3: 1.5}
    assert curve(run, "validation_loss") == {3: 0.25}
    assert run.run_id is not None
    (image,) = [file.path for file in MlflowClient().list_artifacts(run.run_id, "images") if "webp" not in file.path]
    assert image.startswith("images/samples+step+5+")
    assert not warnings(caplog)


def test_without_a_run_nothing_is_sent(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path, {0: 1.0})
    with following(tracking.nested_run("fit"), tmp_path):
        pass
    assert not warnings(caplog)


def test_a_server_that_is_away_is_warned_of_and_disturbs_nothing(
    run: tracking.NestedRun, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    mlflow.set_tracking_uri(GONE)
    with following(run, tmp_path):
        write(tmp_path, {0: 1.0})
    first, last = warnings(caplog)
    assert first.startswith("MLflow did not answer")
    assert last == f"the tracking server is away: curves of this training are only in {tmp_path}"


def test_the_training_s_own_error_passes_while_the_server_is_away(run: tracking.NestedRun, tmp_path: Path) -> None:
    mlflow.set_tracking_uri(GONE)
    write(tmp_path, {0: 1.0})
    with pytest.raises(KeyboardInterrupt), following(run, tmp_path):
        raise KeyboardInterrupt


def test_when_the_server_is_back_the_curves_are_complete(
    run: tracking.NestedRun, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    here = mlflow.get_tracking_uri()
    with following(run, tmp_path):
        write(tmp_path, dict.fromkeys(range(10), 1.0))
        wait(lambda: len(curve(run)) == 10)
        mlflow.set_tracking_uri(GONE)
        write(tmp_path, dict.fromkeys(range(20), 1.0))
        wait(lambda: bool(warnings(caplog)))
        mlflow.set_tracking_uri(here)
        write(tmp_path, dict.fromkeys(range(30), 1.0))
    assert curve(run) == dict.fromkeys(range(30), 1.0)
    (message,) = warnings(caplog)
    assert message.startswith("MLflow did not answer")


def test_a_server_that_accepts_and_never_answers_is_warned_of(
    run: tracking.NestedRun, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follow, "_LAST_WAIT", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as mute:
        mlflow.set_tracking_uri(f"http://127.0.0.1:{mute.getsockname()[1]}")
        with following(run, tmp_path):
            write(tmp_path, {0: 1.0})
    assert f"the tracking server is away: curves of this training are only in {tmp_path}" in warnings(caplog)


def test_after_a_rollback_the_curve_has_the_new_values_however_fast_they_come(
    run: tracking.NestedRun, tmp_path: Path
) -> None:
    with following(run, tmp_path):
        write(tmp_path, dict.fromkeys(range(20), 1.0))
        wait(lambda: len(curve(run)) == 20)
        write(tmp_path, {step: 1.0 if step < 10 else 2.0 for step in range(30)})
    assert curve(run) == {step: 1.0 if step < 10 else 2.0 for step in range(30)}


@pytest.mark.slow
def test_a_real_server_can_die_and_come_back_while_a_training_runs(
    run: tracking.NestedRun, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with Server(tmp_path) as server:
        mlflow.set_tracking_uri(server.address)
        remote = tracking.nested_run("fit")
        remote.run_id = MlflowClient().create_run("0").info.run_id
        with following(remote, tmp_path):
            write(tmp_path, dict.fromkeys(range(10), 1.0))
            wait(lambda: len(curve(remote)) == 10)
            server.kill()
            write(tmp_path, dict.fromkeys(range(20), 1.0))
            wait(lambda: bool(warnings(caplog)))
            server.start()
            write(tmp_path, dict.fromkeys(range(30), 1.0))
        assert curve(remote) == dict.fromkeys(range(30), 1.0)
        assert not any("is away" in message for message in warnings(caplog))
