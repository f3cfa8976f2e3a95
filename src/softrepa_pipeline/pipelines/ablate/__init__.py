"""Studies: settings compared with each other, screened and confirmed."""

from softrepa_pipeline.pipelines.ablate.pipeline import create_pipeline

__all__ = ["create_pipeline"]
