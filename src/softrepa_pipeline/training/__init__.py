"""Training of soft tokens on a frozen base model."""

from softrepa_pipeline.training.buckets import Size, assign, bucket_sizes, write_buckets
from softrepa_pipeline.training.config import ExecutionConfig, FitConfig
from softrepa_pipeline.training.data import TrainingSet
from softrepa_pipeline.training.fit import Observer, fit
from softrepa_pipeline.training.job import Job, Provenance, SamplesConfig, launch
from softrepa_pipeline.training.latents import encode_latents, latent_store
from softrepa_pipeline.training.presets import PRESETS, configured, fit_config
from softrepa_pipeline.training.records import Record
from softrepa_pipeline.training.texts import TextCache

__all__ = [
    "PRESETS",
    "ExecutionConfig",
    "FitConfig",
    "Job",
    "Observer",
    "Provenance",
    "Record",
    "SamplesConfig",
    "Size",
    "TextCache",
    "TrainingSet",
    "assign",
    "bucket_sizes",
    "configured",
    "encode_latents",
    "fit",
    "fit_config",
    "latent_store",
    "launch",
    "write_buckets",
]
