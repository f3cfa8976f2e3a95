"""The retraining: from new captions to a new champion, or to the reason why not."""

from softrepa_pipeline.pipelines.retrain.pipeline import create_pipeline, create_rollback

__all__ = ["create_pipeline", "create_rollback"]
