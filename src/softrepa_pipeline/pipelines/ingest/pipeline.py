"""Captioned images in, clean pairs out."""

from kedro.pipeline import Pipeline, node, pipeline

from softrepa_pipeline.pipelines.ingest.nodes import ingest_pairs, render_world


def render_world_node() -> Pipeline:
    """The embedded world alone: evaluation needs its prompts as well."""
    inputs = ["params:world", "params:folders.world", "params:force"]
    return pipeline([node(render_world, inputs, "world", name="render_world", namespace="ingest")])


def create_pipeline() -> Pipeline:
    inputs = ["params:source", "params:ingest", "params:runner", "params:folders.pairs", "world", "params:force"]
    return render_world_node() + pipeline(
        [node(ingest_pairs, inputs, "pairs", name="ingest_pairs", namespace="ingest")]
    )
