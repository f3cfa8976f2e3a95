"""Node of the studies."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from softrepa_pipeline import tracking
from softrepa_pipeline.config import build
from softrepa_pipeline.evaluation import Arm, summarise
from softrepa_pipeline.evaluation.statistics import gains_by_prompt
from softrepa_pipeline.pipelines.ablate.laboratory import Laboratory
from softrepa_pipeline.studies import (
    Measured,
    Point,
    Study,
    kept_by_digest,
    read_measured,
    read_study,
    write_measured,
    write_page,
)
from softrepa_pipeline.studies.measured import outcome
from softrepa_pipeline.training.first_step import expected_decrease

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class AblateConfig:
    """Which study; how its points are screened (`screen_share` of the steps), how many and with what seeds confirmed.

    Its `preset` is what points change, not the run's: studies stay comparable when that learns from them.
    Training seeds for confirmation differ from the screening's, which chose by its own luck. Without `confirm` it ends
    with the screening.
    """

    study: str
    preset: str
    screen_share: float
    confirm: bool
    num_finalists: int
    training_seeds: tuple[int, ...]
    evaluation: dict[str, Any]

    def __post_init__(self) -> None:
        if not 0 < self.screen_share <= 1:
            raise ValueError(f"ablate.screen_share must be in (0, 1], not {self.screen_share}")


def run_study(
    pairs: dict[str, Any], negatives: dict[str, Any], world: dict[str, Any], parameters: dict[str, Any]
) -> dict[str, Any]:
    """Screen every point of a study, confirm the best, and write its page; what any study has measured stays so."""
    config = build(AblateConfig, parameters["ablate"], "ablate")
    family, folder = parameters["model"]["family"], Path(parameters["folders"]["studies"])
    study = read_study(config.study, parameters["studies"], family)
    file = folder / "measured" / f"{study.name}_{family}.json"
    parameters = {**parameters, "fit": {**parameters["fit"], "preset": config.preset}}
    laboratory = Laboratory(pairs, negatives, world, parameters, config.evaluation)
    kept = {} if parameters["force"] else kept_by_digest(file.parent, family)
    digests = {label: laboratory.digest(point, config.screen_share) for label, point in study.points.items()}
    measured = {label: kept[digest] for label, digest in digests.items() if digest in kept}
    for label, digest in digests.items():
        if label in measured:
            logger.info("%s, %s: measured on %s", study.name, label, measured[label].date)
        else:
            measured[label] = _screen(study, label, laboratory, config, digest)
            _write(study, measured, file)
    for label in _finalists(study, measured, config.num_finalists) if config.confirm else []:
        if measured[label].confirmed is None:
            measured[label] = _confirm(study, label, laboratory, config, measured[label])
            _write(study, measured, file)
    page = _write(study, measured, file)
    tracking.log_artifact(page, "study")
    logger.info("study: %s", page)
    return {"study": study.name, "family": family, "page": str(page), "measured": str(file)}


def _screen(study: Study, label: str, laboratory: Laboratory, config: AblateConfig, digest: str) -> Measured:
    """One short training on the validation prompts."""
    point, started = study.points[label], time.perf_counter()
    with tracking.nested_run(f"{study.name}: {label}", {"study": study.name}) as run:
        run.log_params(_flat(point))
        trained = laboratory.train(point, 0, config.screen_share)
        base = laboratory.arm(point, None, "base", on_test=False)
        soft = laboratory.arm(point, trained.file, label, on_test=False)
        told = outcome(summarise(laboratory.benchmark(point, on_test=False), base, [soft]))
        expected = expected_decrease(trained.job)
        _track(run, "screen", told)
        run.log_metrics({"expected_decrease": expected})
    seconds = time.perf_counter() - started
    logger.info("%s, %s: %+.1f points (screened)", study.name, label, 100 * told["gain"]["mean"])
    cost = (trained.num_pairs, trained.num_parameters, seconds)
    return Measured(digest, time.strftime("%Y-%m-%d"), *cost, expected, told)


def _confirm(study: Study, label: str, laboratory: Laboratory, config: AblateConfig, screened: Measured) -> Measured:
    """Full trainings with several seeds on the test prompts."""
    point, started = study.points[label], time.perf_counter()
    benchmark = laboratory.benchmark(point, on_test=True)
    with tracking.nested_run(f"{study.name}: {label}, confirmed", {"study": study.name}) as run:
        run.log_params(_flat(point))
        base = laboratory.arm(point, None, "base", on_test=True)
        arms: list[Arm] = []
        for seed in config.training_seeds:
            trained = laboratory.train(point, seed, 1.0)
            arms.append(laboratory.arm(point, trained.file, f"{label}, seed {seed}", on_test=True))
        told = outcome(summarise(benchmark, base, arms))
        _track(run, "confirmed", told)
    logger.info("%s, %s: %+.1f points (confirmed)", study.name, label, 100 * told["gain"]["mean"])
    soft = np.concatenate([arm.deciding for arm in arms], axis=1)
    gains = gains_by_prompt(base.deciding, soft, benchmark.test.tasks)
    cost = {"seeds": list(config.training_seeds), "seconds": time.perf_counter() - started}
    return screened.with_confirmed({**told, **cost}, gains)


def _finalists(study: Study, measured: Mapping[str, Measured], count: int) -> list[str]:
    """The references, then the points of the largest screened gain."""
    others = [label for label in measured if label not in study.references]
    ranked = sorted(others, key=lambda label: measured[label].screen["gain"]["mean"], reverse=True)
    return [*study.references, *ranked[:count]]


def _write(study: Study, measured: Mapping[str, Measured], file: Path) -> Path:
    """Keep what was measured, and tell it with what other families' records hold; returns the page."""
    write_measured(file, {label: measured[label] for label in study.points if label in measured})
    stored = sorted(file.parent.glob(f"{study.name}_*.json"))
    families = {own.stem.removeprefix(f"{study.name}_"): read_measured(own) for own in stored}
    return write_page(study, families, file.parents[1])


def _flat(point: Point) -> dict[str, object]:
    changes = {"fit": point.fit, "mine": point.mine, "sampling": point.sampling, "world": point.world}
    flat = {f"{block}.{name}": value for block, own in changes.items() for name, value in own.items()}
    others = ("data", "strength", "base", "anew", "guidance")
    return {**flat, **{name: getattr(point, name) for name in others}}


def _track(run: tracking.NestedRun, stage: str, told: Mapping[str, Any]) -> None:
    run.log_metrics({f"{stage}/gain/{bound}": value for bound, value in told["gain"].items()})
    run.log_metrics({f"{stage}/gain/{task}": own["mean"] for task, own in told["tasks"].items()})
    run.log_metrics({f"{stage}/{name}": value for name, value in told["distances"].items()})
