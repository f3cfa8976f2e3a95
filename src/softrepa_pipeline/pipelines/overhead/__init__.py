"""The overhead stage."""

from softrepa_pipeline.pipelines.overhead.pipeline import create_pipeline

__all__ = ["create_pipeline"]
