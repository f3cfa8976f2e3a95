"""Evaluation of a base model against the same model with soft tokens."""

from softrepa_pipeline.evaluation.evaluate import Arm, Evaluation, EvaluationConfig, evaluate, measure, summarise
from softrepa_pipeline.evaluation.report import format_table, results_page, write_report

__all__ = [
    "Arm",
    "Evaluation",
    "EvaluationConfig",
    "evaluate",
    "format_table",
    "measure",
    "results_page",
    "summarise",
    "write_report",
]
