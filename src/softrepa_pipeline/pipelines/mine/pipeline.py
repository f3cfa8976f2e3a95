"""Clean pairs in, hard negatives per image out."""

from kedro.pipeline import Pipeline, node, pipeline

from softrepa_pipeline.pipelines.mine.nodes import mine_negatives


def create_pipeline() -> Pipeline:
    inputs = ["pairs", "params:mine", "params:clip", "params:folders", "params:runner", "params:cache", "params:force"]
    return pipeline([node(mine_negatives, inputs, "negatives", name="mine_negatives", namespace="mine")])
