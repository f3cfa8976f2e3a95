"""A study as a user runs it, in small."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from project_runs import kedro_run

STUDY = """
studies:
  small:
    question: Does anything change?
    references: [default]
    points:
      default:
      one token: {fit: {num_tokens: 1}}
      poisoned: {data: {poison: mismatched, share: 0.5}, mine: {min_fit: null}}
ablate:
  training_seeds: [1, 2]
"""
PARAMS = ",".join(
    [
        "study=small,ablate.num_finalists=1,ablate.evaluation.prompts_per_task=2",
        "ablate.evaluation.validation_prompts_per_task=2,ablate.evaluation.retrieval_images=4",
        "world.train_images=64,world.validation_prompts_per_task=2,world.test_prompts_per_task=2",
        "fit.num_steps=4,fit.batch_size=4,fit.held_out_images=8,sampling.settings.num_inference_steps=2",
        "folders.studies=docs/studies",
    ]
)


def test_a_study_is_screened_confirmed_told_and_not_measured_twice(project: Path) -> None:
    (project / "conf/local").mkdir(exist_ok=True)
    (project / "conf/local/parameters_ablate.yml").write_text(STUDY)
    kedro_run(project, "--pipelines", "ablate", "--params", f"{PARAMS},ablate.confirm=false")
    screened = _measured(project)
    assert list(screened) == ["default", "one token", "poisoned"]
    assert all(point["confirmed"] is None for point in screened.values())
    assert screened["default"]["num_pairs"] == 2 * 4 * 2
    assert screened["one token"]["num_parameters"] < screened["default"]["num_parameters"]
    assert len({point["digest"] for point in screened.values()}) == 3

    again = kedro_run(project, "--pipelines", "ablate", "--params", PARAMS)
    assert again.stderr.count("measured on") == 3
    confirmed = _measured(project)
    assert {label: point["screen"] for label, point in confirmed.items()} == {
        label: point["screen"] for label, point in screened.items()
    }
    told = {label: point["confirmed"] for label, point in confirmed.items() if point["confirmed"]}
    best = max(list(screened)[1:], key=lambda label: screened[label]["screen"]["gain"]["mean"])
    assert list(told) == [label for label in screened if label in ("default", best)]
    assert told["default"]["num_trainings"] == 2
    page = (project / "docs/studies/small.md").read_text()
    assert page.startswith("# Does anything change?")
    assert "| one token |" in page
    assert (project / "docs/studies/small_sd3.svg").is_file()

    # What was measured holds in another checkout.
    moved = project.rename(project.with_name("moved"))
    assert kedro_run(moved, "--pipelines", "ablate", "--params", PARAMS).stderr.count("measured on") == 3
    project = moved

    client = MlflowClient(f"sqlite:///{project / 'mlflow.db'}")
    runs = client.search_runs(["1"], "tags.study = 'small'")
    assert {run.info.run_name for run in runs} >= {"small: one token", "small: default, confirmed"}
    assert all("mlflow.parentRunId" in run.data.tags for run in runs)


def _measured(project: Path) -> dict[str, Any]:
    return json.loads((project / "docs/studies/measured/small_sd3.json").read_text())
