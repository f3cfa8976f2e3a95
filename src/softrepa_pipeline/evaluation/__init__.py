"""Evaluation of a base model against the same model with soft tokens."""

from softrepa_pipeline.evaluation.arm import Arm, measure
from softrepa_pipeline.evaluation.benchmark import Benchmark
from softrepa_pipeline.evaluation.evaluate import Evaluation, EvaluationConfig, evaluate, load_benchmark
from softrepa_pipeline.evaluation.generation import Model
from softrepa_pipeline.evaluation.measures import load_measures
from softrepa_pipeline.evaluation.studio import Studio
from softrepa_pipeline.evaluation.summary import summarise

__all__ = [
    "Arm",
    "Benchmark",
    "Evaluation",
    "EvaluationConfig",
    "Model",
    "Studio",
    "evaluate",
    "load_benchmark",
    "load_measures",
    "measure",
    "summarise",
]
