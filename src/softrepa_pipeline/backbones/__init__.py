"""Frozen diffusion models of three families behind one interface."""

from softrepa_pipeline.backbones.base import Backbone, Noised, Prompt
from softrepa_pipeline.backbones.injection import Injection, Sites, argument_binder, inject
from softrepa_pipeline.backbones.load import BACKBONES, ModelConfig, load_backbone

__all__ = [
    "BACKBONES",
    "Backbone",
    "Injection",
    "ModelConfig",
    "Noised",
    "Prompt",
    "Sites",
    "argument_binder",
    "inject",
    "load_backbone",
]
