"""The ingest stage."""

from softrepa_pipeline.pipelines.ingest.pipeline import create_pipeline

__all__ = ["create_pipeline"]
