"""The pipelines that `kedro run --pipeline NAME` knows."""

from __future__ import annotations

from kedro.pipeline import Pipeline

from softrepa_pipeline.pipelines import ablate, edit, evaluate, fit, ingest, mine, overhead, pretrain, results, retrain


def register_pipelines() -> dict[str, Pipeline]:
    """Each stage by its name; `train` is the first three, the default is all four."""
    stages = {
        "ingest": ingest.create_pipeline(),
        "mine": mine.create_pipeline(),
        "fit": fit.create_pipeline(),
        "evaluate": evaluate.create_pipeline(),
    }
    train = stages["ingest"] + stages["mine"] + stages["fit"]
    return {
        **stages,
        "train": train,
        "results": stages["ingest"] + stages["mine"] + results.create_pipeline(),
        "ablate": stages["ingest"] + stages["mine"] + ablate.create_pipeline(),
        "retrain": retrain.create_pipeline(),
        "rollback": retrain.create_rollback(),
        "edit": edit.create_pipeline(),
        "overhead": overhead.create_pipeline(),
        "pretrain": pretrain.create_pipeline(),
        "__default__": train + stages["evaluate"],
    }
