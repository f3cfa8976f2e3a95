"""Frozen diffusion models of three families behind one interface."""

from softrepa_pipeline.backbones.architecture import open_model
from softrepa_pipeline.backbones.base import Backbone, Noised, Prompt
from softrepa_pipeline.backbones.injection import Injection, Sites, argument_binder, inject
from softrepa_pipeline.backbones.load import BACKBONES, ModelConfig, load_backbone
from softrepa_pipeline.backbones.pairs import Pairs, grid

__all__ = [
    "BACKBONES",
    "Backbone",
    "Injection",
    "ModelConfig",
    "Noised",
    "Pairs",
    "Prompt",
    "Sites",
    "argument_binder",
    "grid",
    "inject",
    "load_backbone",
    "open_model",
]
