"""Frozen diffusion models of three families behind one interface."""

from softrepa_pipeline.backbones.base import Backbone, Noised, Prompt
from softrepa_pipeline.backbones.injection import Injection, Sites, inject
from softrepa_pipeline.backbones.load import ModelConfig, load_backbone

__all__ = ["Backbone", "Injection", "ModelConfig", "Noised", "Prompt", "Sites", "inject", "load_backbone"]
