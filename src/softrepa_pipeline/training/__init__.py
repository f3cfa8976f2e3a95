"""Training of soft tokens on a frozen base model."""

from softrepa_pipeline.training.config import FitConfig
from softrepa_pipeline.training.data import TrainingSet, encode_latents
from softrepa_pipeline.training.fit import Observer, Record, fit
from softrepa_pipeline.training.presets import PRESETS, fit_config

__all__ = [
    "PRESETS",
    "FitConfig",
    "Observer",
    "Record",
    "TrainingSet",
    "encode_latents",
    "fit",
    "fit_config",
]
