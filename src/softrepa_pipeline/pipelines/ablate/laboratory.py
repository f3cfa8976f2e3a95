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
from softrepa_pipeline.inference import SamplingConfig
from softrepa_pipeline.pipelines.fit.nodes import fit_tokens
from softrepa_pipeline.pipelines.ingest.nodes import ingest_pairs
from softrepa_pipeline.pipelines.mine.nodes import mine_negatives
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
    _bases: dict[tuple[Any, bool], Arm] = field(default_factory=dict)

    def digest(self, point: Point, share: float) -> str:
        """A point's settings with all that they are changes to, but for the code."""
        parts = {
            "data": [self.pairs["digest"], asdict(point.data) if point.data else None],
            "mine": {**self.parameters["mine"], **point.mine},
            "base": source_digest(self.base.base),
            "fit": _chosen(self.fit(point, 0, share)),
            "sampling": [{**self.parameters["sampling"]["settings"], **point.sampling}, asdict(point)["strength"]],
            "evaluation": _portable(self.evaluation),
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
        name = _hash({"fit": _chosen(config), "pairs": pairs["digest"], "negatives": negatives["digest"]})
        parameters = self.parameters
        folders = {**parameters["folders"], "tokens": str(Path(parameters["folders"]["study_tokens"]) / name)}
        block = {**parameters["fit"], **point.fit, "seed": seed, "num_steps": config.num_steps}
        result = fit_tokens(
            pairs,
            negatives,
            parameters["model"],
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
        studio = replace(self._prepared[1], sampling=build(SamplingConfig, settings, "sampling"))
        benchmark, scales = self.benchmark(on_test), self._config.guidance_scales
        if tokens is not None:
            return measure(benchmark, Model(self.base, tokens, point.strength), scales, studio, label)
        key = (studio.sampling, on_test)
        if key not in self._bases:
            self._bases[key] = measure(benchmark, Model(self.base), scales, studio, label)
        return self._bases[key]

    def benchmark(self, on_test: bool) -> Benchmark:
        """The prompts that tell; in a screening they are the validation prompts, which choose the guidance too."""
        benchmark = self._prepared[0]
        return benchmark if on_test else replace(benchmark, test=benchmark.validation)

    @cached_property
    def base(self) -> ModelConfig:
        return build(ModelConfig, self.parameters["model"], "model")

    @cached_property
    def _config(self) -> EvaluationConfig:
        values = {"sampling": self.parameters["sampling"]["settings"], **self.evaluation}
        return build(EvaluationConfig, values, "ablate.evaluation")

    @cached_property
    def _prepared(self) -> tuple[Benchmark, Studio]:
        return prepare(self._config, self.world, self.parameters["folders"], self.parameters["runner"])

    def _data(self, point: Point) -> tuple[dict[str, Any], dict[str, Any]]:
        """The run's own pairs and negatives, or those of a point that changes them."""
        if point.data is None and not point.mine:
            return self.pairs, self.negatives
        parameters, pairs = self.parameters, self.pairs
        runner, force = parameters["runner"], parameters["force"]
        folder = Path(parameters["folders"]["study_data"]) / _hash(asdict(point.data) if point.data else {})
        if point.data is not None:
            write_variant(
                Path(self.world["folder"]) / "train/pairs.parquet", point.data, folder / "source/pairs.parquet"
            )
            source = {"dataset": str(folder / "source"), "known": {}}
            pairs = ingest_pairs(source, parameters["ingest"], runner, str(folder / "pairs"), self.world, force)
        mine = {**parameters["mine"], **point.mine}
        own_folders = {**parameters["folders"], "negatives": str(folder / f"negatives-{_hash(mine)}")}
        common = (parameters["clip"], own_folders, runner, parameters["cache"], force)
        return pairs, mine_negatives(pairs, mine, *common)


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
