"""Clean pairs and hard negatives in; a study's table, figure and page out."""

from kedro.pipeline import Pipeline, node, pipeline

from softrepa_pipeline.pipelines.ablate.nodes import run_study


def create_pipeline() -> Pipeline:
    return pipeline(
        [node(run_study, ["pairs", "negatives", "world", "parameters"], "study", name="run_study", namespace="ablate")]
    )
