"""Nodes of the retraining: what is new, a challenger trained on it, its trial against the champion, the decision."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from softrepa_pipeline import tracking
from softrepa_pipeline.alerts import AlertConfig, alert
from softrepa_pipeline.backbones import ModelConfig
from softrepa_pipeline.config import build
from softrepa_pipeline.evaluation import Evaluation, EvaluationConfig, Model, measure, summarise
from softrepa_pipeline.evaluation.fresh import FreshImages, fresh_retrieval
from softrepa_pipeline.evaluation.gate import GateConfig, check_data, check_quality
from softrepa_pipeline.evaluation.report import Context, format_table, write_report
from softrepa_pipeline.ingestion import new_images, read_images
from softrepa_pipeline.pipelines.fit.nodes import fit_tokens
from softrepa_pipeline.pipelines.ingest.nodes import ingest_pairs
from softrepa_pipeline.pipelines.mine.nodes import mine_negatives
from softrepa_pipeline.pipelines.retrain.memory import PAIRS, Memory, known_to
from softrepa_pipeline.randomness import numpy_generator
from softrepa_pipeline.registry import Registry, Version
from softrepa_pipeline.serving.model import log as log_model
from softrepa_pipeline.serving.painter import Defaults
from softrepa_pipeline.stages.evaluate import prepare
from softrepa_pipeline.training.replay import write_replay

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RetrainConfig:
    """When to retrain, on what, and what the challenger must show.

    Below `min_new_images` nothing happens. `replay` old images are trained on for each new one; `fresh_images` new
    ones are kept from training for the trial. `fit` changes the fit's settings where there is a champion to go on from.
    """

    registered_model: str
    min_new_images: int = 1
    replay: float = 1.0
    fresh_images: int = 64
    fresh_captions: int = 8
    fit: Mapping[str, Any] = field(default_factory=dict)
    gate: GateConfig = field(default_factory=GateConfig)
    seed: int = 0


def take_lock(folders: dict[str, str]) -> str:
    """Keep other retrainings of the data set out."""
    Memory(Path(folders["retrain"])).lock()
    return folders["retrain"]


def ingest_alone(lock: str, *arguments: Any) -> dict[str, Any]:
    """The ingestion, once the lock is held."""
    assert lock
    return ingest_pairs(*arguments)


def find_news(pairs: dict[str, Any], parameters: dict[str, Any], folders: dict[str, str]) -> dict[str, Any]:
    """What has come since the last retraining looked, and the champion it will go up against."""
    config = build(RetrainConfig, parameters, "retrain")
    memory = Memory(Path(folders["retrain"]))
    num_new = len(memory.new_images(pairs))
    champion = Registry(config.registered_model).champion()
    # A retraining that was killed between its promotion and its end has been decided all the same.
    is_decided = champion is not None and not new_images(known_to(champion.tokens), Path(pairs["folder"]) / PAIRS)
    news = {
        "num_new": num_new,
        "num_quarantined": memory.new_quarantined(pairs),
        "is_enough": num_new >= config.min_new_images and not is_decided,
        "champion": None if champion is None else champion.number,
        "champion_tokens": None if champion is None else champion.tokens,
        "folder": str(memory.folder / pairs["digest"]),
    }
    if not news["is_enough"]:
        known = ", and the champion knows them all" if is_decided else ""
        logger.info("nothing new: %d new images, %d are needed%s", num_new, config.min_new_images, known)
    tracking.log_metrics({"retrain/new_images": num_new})
    return news


def train_challenger(
    news: dict[str, Any],
    pairs: dict[str, Any],
    model: dict[str, Any],
    mine: dict[str, Any],
    clip: dict[str, Any],
    fit: dict[str, Any],
    execution: dict[str, Any],
    sampling: dict[str, Any],
    parameters: dict[str, Any],
    folders: dict[str, str],
    runner: dict[str, Any],
    cache: dict[str, Any],
) -> dict[str, Any]:
    """Mine the data set, of which only the new is embedded, and train on the new and some of the old."""
    if not news["is_enough"]:
        return {}  # Kedro hands no None on
    config, folder = build(RetrainConfig, parameters, "retrain"), Path(news["folder"])
    negatives = mine_negatives(pairs, mine, clip, folders, runner, cache, force=False)
    table, champion = Path(pairs["folder"]) / PAIRS, news["champion_tokens"]
    new = new_images(known_to(champion), table)
    fresh = _hold_out(config, new)
    replayed = folder / "negatives.parquet"
    num_images = write_replay(
        Path(negatives["folder"]) / "negatives.parquet", set(new), set(fresh), config.replay, config.seed, replayed
    )
    own_negatives = {"folder": str(folder), "digest": f"{negatives['digest']} {champion}"}
    own_fit = {**fit, "seed": config.seed}
    if champion is not None:
        own_fit |= {**config.fit, "start_from": champion}
    own_folders = {**folders, "tokens": str(folder / "tokens")}
    trained = fit_tokens(
        pairs, own_negatives, model, own_fit, execution, sampling, own_folders, runner, cache, force=False
    )
    # What a later retraining takes as known to these tokens.
    shutil.copyfile(table, folder / PAIRS)
    just_come = set(Memory(Path(folders["retrain"])).new_images(pairs))
    misfits = pq.read_table(Path(negatives["folder"]) / "misfits.parquet", columns=["image_id"])["image_id"].to_pylist()
    return {
        "tokens": trained["file"],
        "num_images": num_images,
        "fresh": fresh,
        "num_bad": news["num_quarantined"] + sum(image_id in just_come for image_id in misfits),
    }


def judge_challenger(
    challenger: dict[str, Any],
    news: dict[str, Any],
    pairs: dict[str, Any],
    world: dict[str, Any],
    model: dict[str, Any],
    evaluation: dict[str, Any],
    sampling: dict[str, Any],
    parameters: dict[str, Any],
    folders: dict[str, str],
    runner: dict[str, Any],
) -> dict[str, Any]:
    """The challenger against the champion and the base on the same prompts, and on images that no training has seen."""
    if not challenger:
        return {}
    config = build(RetrainConfig, parameters, "retrain")
    own = build(EvaluationConfig, {"sampling": sampling["settings"], **evaluation}, "evaluation")
    benchmark, studio = prepare(own, world, folders, runner)
    base = Model(build(ModelConfig, model, "model"))
    models = {
        "base": base,
        "champion": base if news["champion_tokens"] is None else own.soft_model(base.base, news["champion_tokens"]),
        "challenger": own.soft_model(base.base, challenger["tokens"]),
    }
    arms = {name: measure(benchmark, of, own.guidance_scales, studio, name) for name, of in models.items()}
    summary = summarise(benchmark, arms["champion"], [arms["challenger"]])
    fresh = _fresh_difference(challenger, pairs, models, config)
    checks = [
        check_data(config.gate, challenger["num_bad"], news["num_new"] + news["num_quarantined"]),
        *check_quality(config.gate, summary, fresh),
    ]
    against_base = summarise(benchmark, arms["base"], [arms["challenger"]])["delta"]["overall"]
    report = Path(news["folder"]) / "report.html"
    shown = {**summary, "family": base.base.family, "objective": "challenger (soft) against champion"}
    identity = {"champion": str(news["champion_tokens"]), "challenger": challenger["tokens"]}
    write_report(Evaluation(benchmark, arms["champion"], arms["challenger"], shown), Context(identity), report)
    tracking.log_artifact(report, "retrain")
    logger.info("champion (base) against challenger (soft)\n\n%s\n", format_table(shown))
    return {
        "passed": all(check.holds for check in checks),
        "checks": [asdict(check) for check in checks],
        "against_champion": summary["delta"]["overall"],
        "against_base": against_base,
        "conditional_only": own.conditional_only,
    }


def promote_challenger(
    verdict: dict[str, Any],
    challenger: dict[str, Any],
    news: dict[str, Any],
    parameters: dict[str, Any],
    pairs: dict[str, Any],
    model: dict[str, Any],
    sampling: dict[str, Any],
    folders: dict[str, str],
    alerts: dict[str, Any],
) -> dict[str, Any]:
    """Give the challenger the champion's place, or keep it; either way the new data has been considered."""
    config = build(RetrainConfig, parameters, "retrain")
    if not verdict:
        decision: dict[str, Any] = {"decision": "nothing new", "new_images": news["num_new"]}
        tracking.set_tag("retrain.decision", decision["decision"])
        return decision
    decision = {
        "decision": "promoted" if verdict["passed"] else "kept the champion",
        "because": [f"{check['name']}: {check['found']}" for check in verdict["checks"] if not check["holds"]],
        "new_images": news["num_new"],
        "trained_on": challenger["num_images"],
        "champion_before": news["champion"],
        **{name: verdict[name] for name in ("checks", "against_champion", "against_base")},
    }
    registry = Registry(config.registered_model)
    if verdict["passed"]:
        decision["champion"] = _register(registry, challenger["tokens"], verdict, model, sampling).number
    else:
        decision["champion"] = news["champion"]
        event = {"event": "gate failed", "registered_model": config.registered_model, "because": decision["because"]}
        alert(build(AlertConfig, alerts, "alerts"), event)
    Memory(Path(folders["retrain"])).consider(pairs)
    tracking.set_tag("retrain.decision", decision["decision"])
    tracking.log_metrics({"retrain/gain": verdict["against_champion"]["mean"], "retrain/passed": verdict["passed"]})
    logger.info("%s%s", decision["decision"], "".join(f"; {reason}" for reason in decision["because"]))
    return decision


def roll_back(parameters: dict[str, Any]) -> dict[str, Any]:
    """Give the champion's place back to the version before it."""
    config = build(RetrainConfig, parameters, "retrain")
    version = Registry(config.registered_model).roll_back()
    logger.info("champion of %s: version %d (%s)", config.registered_model, version.number, version.tokens)
    return asdict(version)


def _register(
    registry: Registry, tokens: str, verdict: dict[str, Any], model: dict[str, Any], sampling: dict[str, Any]
) -> Version:
    """Promote the tokens, as a model that MLflow can serve where a run is tracked."""
    run_id, source = tracking.active_run_id(), tokens
    if run_id is not None:
        num_steps = sampling["settings"]["num_inference_steps"]
        defaults = Defaults(sampling["guidance"], num_steps, verdict["conditional_only"])
        source = log_model(Path(tokens), build(ModelConfig, model, "model"), defaults).model_uri
    gain = "{mean:+.4f} [{low:+.4f}, {high:+.4f}]".format(**verdict["against_base"])
    return registry.promote(tokens, source, run_id, {"softrepa.gain_over_base": gain})


def _hold_out(config: RetrainConfig, new: list[str]) -> list[str]:
    """Some of the new images, at most a fifth."""
    count = min(config.fresh_images, len(new) // 5)
    chosen = numpy_generator(config.seed, "fresh images").choice(len(new), count, replace=False)
    return [new[place] for place in sorted(chosen)]


def _fresh_difference(
    challenger: dict[str, Any], pairs: dict[str, Any], models: dict[str, Model], config: RetrainConfig
) -> float | None:
    if not challenger["fresh"]:
        return None
    folder = Path(pairs["folder"])
    table = pq.read_table(folder / PAIRS, columns=["image_id", "captions"]).to_pydict()
    place_of = {image_id: place for place, image_id in enumerate(table["image_id"])}
    places = [place_of[image_id] for image_id in challenger["fresh"]]
    fresh = FreshImages(list(read_images(folder, places)), places, table["captions"])
    before, after = (
        fresh_retrieval(models[name], fresh, config.fresh_captions, config.seed) for name in ("champion", "challenger")
    )
    return float(after.mean() - before.mean())
