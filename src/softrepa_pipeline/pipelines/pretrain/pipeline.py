"""Nothing in, the embedded models out."""

from kedro.pipeline import Pipeline, node, pipeline

from softrepa_pipeline.pipelines.pretrain.nodes import pretrain_models


def create_pipeline() -> Pipeline:
    return pipeline(
        [node(pretrain_models, ["params:pretrain", "params:folders"], "embedded_models", name="pretrain_models")]
    )
