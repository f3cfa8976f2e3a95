"""A data set that grows in; a champion, kept or replaced, and the reasons out."""

from kedro.pipeline import Pipeline, node, pipeline

from softrepa_pipeline.pipelines.ingest.pipeline import render_world_node
from softrepa_pipeline.pipelines.retrain.nodes import (
    find_news,
    ingest_alone,
    judge_challenger,
    promote_challenger,
    roll_back,
    take_lock,
    train_challenger,
)


def create_pipeline() -> Pipeline:
    ingest = [
        "lock",
        "params:source",
        "params:ingest",
        "params:runner",
        "params:folders.pairs",
        "world",
        "params:force",
    ]
    train = [
        "news",
        "pairs",
        *(f"params:{name}" for name in ("model", "mine", "clip", "fit", "execution", "sampling", "retrain")),
        *(f"params:{name}" for name in ("folders", "runner", "cache")),
    ]
    judge = [
        "challenger",
        "news",
        "pairs",
        "world",
        *(f"params:{name}" for name in ("model", "evaluation", "sampling", "retrain", "folders", "runner")),
    ]
    promote = [
        "verdict",
        "challenger",
        "news",
        "params:retrain",
        "pairs",
        *(f"params:{name}" for name in ("model", "sampling", "folders", "alerts")),
    ]
    return render_world_node() + pipeline(
        [
            node(take_lock, "params:folders", "lock", name="take_lock"),
            node(ingest_alone, ingest, "pairs", name="ingest_pairs", namespace="ingest"),
            node(find_news, ["pairs", "params:retrain", "params:folders"], "news", name="find_news"),
            node(train_challenger, train, "challenger", name="train_challenger"),
            node(judge_challenger, judge, "verdict", name="judge_challenger"),
            node(promote_challenger, promote, "retraining", name="promote_challenger"),
        ]
    )


def create_rollback() -> Pipeline:
    return pipeline([node(roll_back, "params:retrain", "champion", name="roll_back")])
