"""Clean pairs and hard negatives in; several trainings, one table and docs/results.md out."""

from kedro.pipeline import Pipeline, node, pipeline

from softrepa_pipeline.pipelines.results.nodes import measure_results


def create_pipeline() -> Pipeline:
    inputs = [
        "pairs",
        "negatives",
        "world",
        "params:model",
        "params:fit",
        "params:execution",
        "params:sampling",
        "params:results",
        "params:folders",
        "params:runner",
        "params:cache",
        "params:force",
    ]
    return pipeline([node(measure_results, inputs, "results", name="measure_results", namespace="evaluate")])
