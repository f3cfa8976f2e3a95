"""The mine stage."""

from softrepa_pipeline.pipelines.mine.pipeline import create_pipeline

__all__ = ["create_pipeline"]
