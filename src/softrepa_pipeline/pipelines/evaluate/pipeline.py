"""Soft tokens in, a comparison with the base out."""

from kedro.pipeline import Pipeline, node, pipeline

from softrepa_pipeline.pipelines.evaluate.nodes import evaluate_tokens
from softrepa_pipeline.pipelines.ingest.pipeline import render_world_node


def create_pipeline() -> Pipeline:
    inputs = [
        "soft_tokens",
        "world",
        "params:model",
        "params:evaluation",
        "params:sampling",
        "params:folders",
        "params:runner",
    ]
    return render_world_node() + pipeline(
        [node(evaluate_tokens, inputs, "evaluation", name="evaluate_tokens", namespace="evaluate")]
    )
