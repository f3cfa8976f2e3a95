"""The editing stage."""

from softrepa_pipeline.pipelines.edit.pipeline import create_pipeline

__all__ = ["create_pipeline"]
