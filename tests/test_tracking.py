"""The MLflow adapter against a real store, and without any."""

from collections.abc import Iterator
from pathlib import Path

import mlflow
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run
from PIL import Image

from softrepa_pipeline import tracking


@pytest.fixture
def parent(store: str) -> Iterator[str]:
    with mlflow.start_run(experiment_id=store) as run:
        yield run.info.run_id


def stored(run_id: str | None) -> Run:
    assert run_id is not None
    return MlflowClient().get_run(run_id)


def test_a_nested_run_is_a_finished_child_with_what_was_logged(parent: str, tmp_path: Path) -> None:
    (tmp_path / "tokens.txt").write_text("tokens")
    with tracking.nested_run("fit", tags={"family": "sd3"}) as run:
        run.log_params({"rate": 1e-3, "long": "x" * 10_000})
        run.log_metrics({"loss": 2.0, "accuracy": 0.5}, step=1)
        run.log_metrics({"loss": 1.0}, step=2)
        run.log_image(Image.new("RGB", (8, 8)), "samples", step=2)
        run.log_artifact(tmp_path / "tokens.txt", "tokens")
        run.log_artifact(tmp_path, "folder")
        run.set_tag("resumed_from", 7)
        assert stored(run.run_id).info.status == "RUNNING"
    child = stored(run.run_id)
    assert child.info.status == "FINISHED"
    assert child.info.run_name == "fit"
    assert child.data.tags["mlflow.parentRunId"] == parent
    assert (child.data.tags["family"], child.data.tags["resumed_from"]) == ("sd3", "7")
    assert child.data.params["rate"] == "0.001"
    history = MlflowClient().get_metric_history(child.info.run_id, "loss")
    assert [(m.step, m.value) for m in history] == [(1, 2.0), (2, 1.0)]
    assert list_artifacts(child.info.run_id, "tokens") == ["tokens/tokens.txt"]
    assert list_artifacts(child.info.run_id, "folder") == ["folder/tokens.txt"]
    assert any(path.endswith(".png") for path in list_artifacts(child.info.run_id, "images"))
    assert stored(parent).info.status == "RUNNING"


@pytest.mark.parametrize(
    ("error", "status"), [(RuntimeError, "FAILED"), (KeyboardInterrupt, "KILLED"), (SystemExit, "KILLED")]
)
def test_a_nested_run_says_how_it_ended(parent: str, error: type[BaseException], status: str) -> None:
    run = tracking.nested_run("fit")
    with pytest.raises(error), run:
        raise error
    assert stored(run.run_id).info.status == status
    active = mlflow.active_run()
    assert active is not None
    assert active.info.run_id == parent


def test_the_active_run_gets_metrics_params_images_artifacts_and_the_dataset(parent: str, tmp_path: Path) -> None:
    Image.new("L", (8, 8)).save(tmp_path / "grid.png")
    tracking.log_metrics({"overall": 0.5})
    tracking.log_params({f"p{index}": index for index in range(150)})
    tracking.log_image(tmp_path / "grid.png", "grid")
    tracking.log_artifact(tmp_path / "grid.png")
    tracking.set_tag("stage", "evaluate")
    tracking.log_dataset("photos", tmp_path, "a" * 64, rows=24, context="evaluation")
    run = stored(parent)
    assert run.data.metrics["overall"] == 0.5
    assert len(run.data.params) == 150
    assert run.data.tags["stage"] == "evaluate"
    assert "grid.png" in list_artifacts(parent, None)
    (entry,) = run.inputs.dataset_inputs
    assert (entry.dataset.name, entry.dataset.digest) == ("photos", "a" * 36)
    assert '"num_rows": 24' in entry.dataset.profile
    assert [tag.value for tag in entry.tags] == ["evaluation"]


def test_without_an_active_run_nothing_happens(store: str, tmp_path: Path) -> None:
    before = len(MlflowClient().search_runs([store]))
    with tracking.nested_run("fit") as run:
        run.log_metrics({"loss": 1.0}, step=1)
        run.log_params({"rate": 1})
        run.log_image(Image.new("RGB", (8, 8)), "samples", step=1)
        run.log_artifact(tmp_path)
        run.set_tag("a", "b")
        assert run.run_id is None
    tracking.log_metrics({"loss": 1.0})
    tracking.log_params({"rate": 1})
    tracking.log_image(tmp_path / "missing.png", "grid")
    tracking.log_artifact(tmp_path / "missing")
    tracking.set_tag("a", "b")
    tracking.log_dataset("photos", tmp_path, "digest", rows=1)
    assert mlflow.active_run() is None
    assert len(MlflowClient().search_runs([store])) == before


def list_artifacts(run_id: str, folder: str | None) -> list[str]:
    return [file.path for file in MlflowClient().list_artifacts(run_id, folder)]
