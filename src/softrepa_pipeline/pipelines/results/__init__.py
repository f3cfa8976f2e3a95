"""The full evaluation over several trainings."""

from softrepa_pipeline.pipelines.results.pipeline import create_pipeline

__all__ = ["create_pipeline"]
