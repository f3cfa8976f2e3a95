"""Every environment gives settings that the stages accept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from kedro.config import OmegaConfigLoader

from softrepa_pipeline.backbones import ModelConfig
from softrepa_pipeline.config import build
from softrepa_pipeline.settings import CONFIG_LOADER_ARGS
from softrepa_pipeline.training import PRESETS, FitConfig, fit_config

CONF = Path(__file__).parents[1] / "conf"
PUBLISHED = ("paper", "sd15", "sdxl", "sd3")  # environments


def parameters(environment: str, **runtime: Any) -> dict[str, Any]:
    return OmegaConfigLoader(str(CONF), env=environment, runtime_params=runtime, **CONFIG_LOADER_ARGS)["parameters"]


def settings(found: dict[str, Any]) -> tuple[ModelConfig, FitConfig]:
    model = build(ModelConfig, found["model"], "model")
    changes = dict(found["fit"])
    return model, fit_config(changes.pop("preset"), model.family, changes.pop("objective"), changes)


@pytest.mark.parametrize("family", ["sd15", "sdxl", "sd3"])
@pytest.mark.parametrize("objective", ["softrepa", "agsm", "dsm"])
def test_real_models_have_the_published_settings(family: str, objective: str) -> None:
    found = parameters(family, objective=objective)
    model, config = settings(found)
    assert config == PRESETS["published", family, objective].settings
    assert (model.family, model.device) == (family, "cuda")
    assert "/" in model.base
    assert not model.base.startswith("/")
    assert found["folders"]["tokens"].endswith(f"data/06_models/real_{family}/coco_sample/{objective}")


@pytest.mark.parametrize("family", ["sd15", "sdxl", "sd3"])
def test_one_switch_changes_the_embedded_family(family: str) -> None:
    model, config = settings(parameters("base", family=family, objective="agsm"))
    assert config == PRESETS["embedded", family, "agsm"].settings
    assert Path(model.base).name == family
    assert (Path(model.base) / "model_index.json").is_file()


def test_the_paper_s_settings_on_an_embedded_base() -> None:
    model, config = settings(parameters("paper"))
    assert "embedded" in model.base
    published = PRESETS["published", "sd3", "softrepa"].settings
    assert (config.logits, config.temperature, config.num_buckets) == ("exponential", 0.07, 100)
    assert (config.resolution, published.resolution) == (32, 512)


@pytest.mark.parametrize(("environment", "one_branch"), [("base", True), *dict.fromkeys(PUBLISHED, False).items()])
def test_published_settings_draw_in_both_branches_of_guidance(environment: str, one_branch: bool) -> None:
    found = parameters(environment)
    assert found["evaluation"]["conditional_only"] == one_branch
    assert found["results"]["evaluation"]["conditional_only"] == one_branch


def test_no_family_or_objective_overwrites_another_s_edits() -> None:
    runs = [("sd15", "softrepa"), ("sd15", "agsm"), ("sd3", "agsm")]
    loaders = [
        OmegaConfigLoader(
            str(CONF), env="base", runtime_params={"family": family, "objective": objective}, **CONFIG_LOADER_ARGS
        )
        for family, objective in runs
    ]
    for (family, objective), loader in zip(runs, loaders, strict=True):
        folder = f"data/08_reporting/embedded_{family}/shapes/{objective}"
        assert loader["catalog"]["edit"]["filepath"] == f"{folder}/edit.json"
        assert loader["parameters"]["folders"]["evaluation"].endswith(f"/{folder}")
