"""Soft tokens in, a comparison of edits with and without them out."""

from kedro.pipeline import Pipeline, node, pipeline

from softrepa_pipeline.pipelines.edit.nodes import compare_edits


def create_pipeline() -> Pipeline:
    inputs = ["soft_tokens", "params:model", "params:clip", "params:edit", "params:folders", "params:force"]
    return pipeline([node(compare_edits, inputs, "edit", name="compare_edits")])
