"""A study as a user runs it, in small."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import mean
from typing import Any

import pytest
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
  elsewhere:
    question: Does it hold elsewhere?
    references: []
    points:
      longer prompts: {world: {wording: long}, guidance: 2.0}
      on a LoRA: {base: &lora {kind: lora, images: 4, batch_size: 2, pool_images: 4}}
      on a LoRA, trained anew: {base: *lora, anew: true}
      textured: {data: {renderer: textured}}
ablate:
  training_seeds: [1, 2]
"""
PARAMS = ",".join(
    [
        "study=small,ablate.num_finalists=1,ablate.evaluation.prompts_per_task=2",
        "ablate.evaluation.validation_prompts_per_task=2,ablate.evaluation.retrieval_images=2",
        "ablate.evaluation.retrieval_captions=2,ablate.evaluation.guidance_scales=[2.0]",
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
    assert told["default"]["seeds"] == [1, 2]
    gains = confirmed["default"]["gains"]
    assert {task: len(own) for task, own in gains.items()} == dict.fromkeys(told["default"]["tasks"], 2)
    assert 100 * mean([mean(own) for own in gains.values()]) == pytest.approx(
        100 * told["default"]["gain"]["mean"], abs=0.01
    )
    page = (project / "docs/studies/small.md").read_text()
    assert page.startswith("# Does anything change?")
    assert "| one token |" in page
    assert (project / "docs/studies/small_sd3.svg").is_file()

    client = MlflowClient(f"sqlite:///{project / 'mlflow.db'}")
    runs = client.search_runs(["1"], "tags.study = 'small'")
    assert {run.info.run_name for run in runs} >= {"small: one token", "small: default, confirmed"}
    assert all("mlflow.parentRunId" in run.data.tags for run in runs)


@pytest.mark.slow
def test_points_are_measured_on_other_worlds_and_bases(project: Path) -> None:
    (project / "conf/local").mkdir(exist_ok=True)
    (project / "conf/local/parameters_ablate.yml").write_text(STUDY)
    parameters = PARAMS.replace("study=small", "study=elsewhere")
    kedro_run(project, "--pipelines", "ablate", "--params", f"{parameters},ablate.confirm=false")
    points = _measured(project, "elsewhere")
    assert len({point["digest"] for point in points.values()}) == 4
    assert points["longer prompts"]["screen"]["guidance"] == {"base": 2.0, "soft": [2.0]}
    models = project / "data/06_models/embedded_sd3"
    copies = list((models / "study_bases").iterdir())
    assert [copy.is_dir() for copy in copies] == [True]
    # Old tokens are the same for the first two points; the copy and the textured images have their own.
    assert len(list((models / "studies").iterdir())) == 3
    assert len(list((project / "data/02_intermediate/studies").glob("world-*"))) == 2


def _measured(project: Path, study: str = "small") -> dict[str, Any]:
    return json.loads((project / f"docs/studies/measured/{study}_sd3.json").read_text())
