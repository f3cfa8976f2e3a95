"""Training of soft tokens on a frozen base model."""

from softrepa_pipeline.training.config import FitConfig
from softrepa_pipeline.training.data import TrainingSet, encode_latents
from softrepa_pipeline.training.fit import Observer, Record, fit

__all__ = ["FitConfig", "Observer", "Record", "TrainingSet", "encode_latents", "fit"]
