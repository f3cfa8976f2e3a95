"""Frozen diffusion models of three families behind one interface."""

from softrepa_pipeline.backbones.architecture import open_model
from softrepa_pipeline.backbones.base import Backbone, Noised, Prompt, encode_images
from softrepa_pipeline.backbones.injection import ALL_TIMESTEPS, Injection, Sites, argument_binder, asking, inject
from softrepa_pipeline.backbones.load import BACKBONES, ModelConfig, load_backbone, load_vae
from softrepa_pipeline.backbones.pairs import Pairs, grid

__all__ = [
    "ALL_TIMESTEPS",
    "BACKBONES",
    "Backbone",
    "Injection",
    "ModelConfig",
    "Noised",
    "Pairs",
    "Prompt",
    "Sites",
    "argument_binder",
    "asking",
    "encode_images",
    "grid",
    "inject",
    "load_backbone",
    "load_vae",
    "open_model",
]
