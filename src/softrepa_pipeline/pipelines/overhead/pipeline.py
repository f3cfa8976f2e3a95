"""Soft tokens in, what they cost out."""

from kedro.pipeline import Pipeline, node, pipeline

from softrepa_pipeline.pipelines.overhead.nodes import measure_overhead


def create_pipeline() -> Pipeline:
    inputs = ["soft_tokens", "params:model", "params:overhead", "params:sampling"]
    return pipeline([node(measure_overhead, inputs, "overhead", name="measure_overhead")])
