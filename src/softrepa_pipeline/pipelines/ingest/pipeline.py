"""Captioned images in, clean pairs out."""

from kedro.pipeline import Pipeline, node, pipeline

from softrepa_pipeline.pipelines.ingest.nodes import ingest_pairs, render_world


def render_world_node() -> Pipeline:
    """The embedded world alone: evaluation needs its prompts as well."""
    return pipeline(
        [node(render_world, ["params:world", "params:folders.world", "params:force"], "world", name="render_world")]
    )


def create_pipeline() -> Pipeline:
    inputs = ["params:source", "params:ingest", "params:runner", "params:folders.pairs", "world", "params:force"]
    return render_world_node() + pipeline([node(ingest_pairs, inputs, "pairs", name="ingest_pairs")])
