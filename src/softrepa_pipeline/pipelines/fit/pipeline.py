"""Clean pairs and hard negatives in, soft tokens out."""

from kedro.pipeline import Pipeline, node, pipeline

from softrepa_pipeline.pipelines.fit.nodes import fit_tokens


def create_pipeline() -> Pipeline:
    inputs = [
        "pairs",
        "negatives",
        "params:model",
        "params:fit",
        "params:execution",
        "params:sampling",
        "params:folders",
        "params:runner",
        "params:cache",
        "params:force",
    ]
    return pipeline([node(fit_tokens, inputs, "soft_tokens", name="fit_tokens", namespace="fit")])
