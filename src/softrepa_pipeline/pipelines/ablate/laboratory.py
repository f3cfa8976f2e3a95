"""What the points of a study share: data, training and measuring, each done once."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from softrepa_pipeline.backbones import ModelConfig
from softrepa_pipeline.config import build
from softrepa_pipeline.evaluation import Arm, Benchmark, EvaluationConfig, Model, Studio, measure
from softrepa_pipeline.inference import SamplingConfig, as_strength
from softrepa_pipeline.pipelines.fit.nodes import fit_tokens
from softrepa_pipeline.pipelines.ingest.nodes import ingest_pairs, render_world
from softrepa_pipeline.pipelines.mine.nodes import mine_negatives
from softrepa_pipeline.shapes.finetuning import fine_tune
from softrepa_pipeline.stage import source_digest
from softrepa_pipeline.stages.evaluate import prepare
from softrepa_pipeline.studies import Point, write_variant
from softrepa_pipeline.training import FitConfig, Job, configured
from softrepa_pipeline.training.job import read_job


@dataclass(frozen=True)
class Trained:
    """A point's tokens, the job that made them, and what it took."""

    file: str
    job: Job
    num_pairs: int
    num_parameters: int


@dataclass
class Laboratory:
    """Trains and measures points; tokens, images and tables are kept by what they are made of, across studies."""

    pairs: dict[str, Any]
    negatives: dict[str, Any]
    world: dict[str, Any]
    parameters: dict[str, Any]
    evaluation: dict[str, Any]
    _bases: dict[str, Arm] = field(default_factory=dict)
    _prepared: dict[str, tuple[Benchmark, Studio]] = field(default_factory=dict)

    def digest(self, point: Point, share: float) -> str:
        """A point's settings with all that they are changes to, but for the code."""
        parts = {
            "data": [self.pairs["digest"], _data_settings(point) or None],
            "mine": {**self.parameters["mine"], **point.mine},
            "base": source_digest(self.base.base),
            "fit": _chosen(self.fit(point, 0, share)),
            "sampling": [{**self.parameters["sampling"]["settings"], **point.sampling}, asdict(point)["strength"]],
            "evaluation": _portable(self.evaluation),
            **_where_set(point),
        }
        return _hash(parts)

    def fit(self, point: Point, seed: int, share: float) -> FitConfig:
        """The settings of one training, with a share of its steps."""
        config = configured(self.base.family, {**self.parameters["fit"], **point.fit})
        if config.num_steps is None:
            raise ValueError("a study's trainings are counted in steps: set fit.num_steps")
        return replace(config, seed=seed, num_steps=max(1, round(share * config.num_steps)))

    def train(self, point: Point, seed: int, share: float) -> Trained:
        """Train a point's tokens, or take them where they have been trained already."""
        config = self.fit(point, seed, share)
        pairs, negatives = self._data(point)
        made_of = {"fit": _chosen(config), "pairs": pairs["digest"], "negatives": negatives["digest"]}
        parameters, model = self.parameters, self.parameters["model"]
        if point.anew:
            model = {**model, "base": self.base_of(point).base}
            made_of["base"] = Path(model["base"]).name
        name = _hash(made_of)
        folders = {**parameters["folders"], "tokens": str(Path(parameters["folders"]["study_tokens"]) / name)}
        block = {**parameters["fit"], **point.fit, "seed": seed, "num_steps": config.num_steps}
        result = fit_tokens(
            pairs,
            negatives,
            model,
            block,
            parameters["execution"],
            parameters["sampling"],
            folders,
            parameters["runner"],
            parameters["cache"],
            parameters["force"],
        )
        assert config.num_steps is not None
        job = read_job(Path(result["log"]).with_name("job.json"))
        return Trained(result["file"], job, config.num_steps * config.num_pairs, result["num_parameters"])

    def arm(self, point: Point, tokens: str | None, label: str, on_test: bool) -> Arm:
        """Measure the base, once for each way of drawing, or a point's tokens."""
        settings = {**self.parameters["sampling"]["settings"], **point.sampling}
        studio = replace(self._prepare(point)[1], sampling=build(SamplingConfig, settings, "sampling"))
        scales = self._config.guidance_scales if point.guidance is None else (point.guidance,)
        benchmark, base = self.benchmark(point, on_test), self.base_of(point)
        if tokens is not None:
            return measure(benchmark, Model(base, tokens, as_strength(point.strength)), scales, studio, label)
        key = _hash([settings, scales, base.base, point.world, on_test])
        if key not in self._bases:
            self._bases[key] = measure(benchmark, Model(base), scales, studio, label)
        return self._bases[key]

    def benchmark(self, point: Point, on_test: bool) -> Benchmark:
        """The prompts that tell; in a screening they are the validation prompts, which choose the guidance too."""
        benchmark = self._prepare(point)[0]
        return benchmark if on_test else replace(benchmark, test=benchmark.validation)

    def base_of(self, point: Point) -> ModelConfig:
        """What a point is measured with: the run's base, or a fine-tuned copy of it, made where it is not there yet."""
        if point.base is None:
            return self.base
        name = _hash({"base": source_digest(self.base.base), "tuning": asdict(point.base)})
        folder = Path(self.parameters["folders"]["study_bases"]) / name
        fine_tune(self.base.family, Path(self.base.base), point.base, folder)
        return replace(self.base, base=str(folder))

    @cached_property
    def base(self) -> ModelConfig:
        return build(ModelConfig, self.parameters["model"], "model")

    @cached_property
    def _config(self) -> EvaluationConfig:
        values = {"sampling": self.parameters["sampling"]["settings"], **self.evaluation}
        return build(EvaluationConfig, values, "ablate.evaluation")

    def _prepare(self, point: Point) -> tuple[Benchmark, Studio]:
        """The prompts of the world that a point is measured on, and what draws and measures their images."""
        key = _hash(point.world)
        if key not in self._prepared:
            world = self._world(point.world) if point.world else self.world
            parameters = self.parameters
            self._prepared[key] = prepare(self._config, world, parameters["folders"], parameters["runner"])
        return self._prepared[key]

    def _world(self, changes: dict[str, Any]) -> dict[str, Any]:
        folder = Path(self.parameters["folders"]["study_data"]) / f"world-{_hash(changes)}"
        return render_world({**self.parameters["world"], **changes}, str(folder), self.parameters["force"])

    def _data(self, point: Point) -> tuple[dict[str, Any], dict[str, Any]]:
        """The run's own pairs and negatives, or those of a point that changes them."""
        if point.data is None and not point.mine:
            return self.pairs, self.negatives
        parameters, pairs = self.parameters, self.pairs
        runner, force = parameters["runner"], parameters["force"]
        folder = Path(parameters["folders"]["study_data"]) / _hash(_data_settings(point))
        if point.data is not None:
            world = self._world({"renderer": point.data.renderer}) if point.data.renderer else self.world
            write_variant(Path(world["folder"]) / "train/pairs.parquet", point.data, folder / "source/pairs.parquet")
            source = {"dataset": str(folder / "source"), "known": {}}
            pairs = ingest_pairs(source, parameters["ingest"], runner, str(folder / "pairs"), self.world, force)
        mine = {**parameters["mine"], **point.mine}
        own_folders = {**parameters["folders"], "negatives": str(folder / f"negatives-{_hash(mine)}")}
        common = (parameters["clip"], own_folders, runner, parameters["cache"], force)
        return pairs, mine_negatives(pairs, mine, *common)


def _data_settings(point: Point) -> dict[str, Any]:
    """Without a renderer where none is named: points are older than it."""
    settings = asdict(point.data) if point.data else {}
    return {name: value for name, value in settings.items() if name != "renderer" or value is not None}


def _where_set(point: Point) -> dict[str, Any]:
    """What a point is measured on, as far as it is not as ever: points are older than these settings too."""
    base = [asdict(point.base), point.anew] if point.base else None
    settings = {"world": point.world or None, "copy": base, "guidance": point.guidance}
    return {name: value for name, value in settings.items() if value is not None}


def _chosen(config: FitConfig) -> dict[str, Any]:
    """The settings that are not FitConfig's defaults, so that a new setting does not make old results look stale."""
    defaults = {own.name: own.default for own in fields(config)}
    return {name: value for name, value in asdict(config).items() if value != defaults[name]}


def _portable(value: Any) -> Any:
    """Settings with files by their content, so that records hold in every checkout."""
    if isinstance(value, dict):
        return {name: _portable(own) for name, own in value.items()}
    if isinstance(value, list):
        return [_portable(own) for own in value]
    return source_digest(value) if isinstance(value, str) and Path(value).is_absolute() else value


def _hash(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]
