"""Editing of images by captions, base against soft tokens."""

from softrepa_pipeline.evaluation.editing.config import PRESETS, Captions, EditConfig
from softrepa_pipeline.evaluation.editing.edit import edit, native_side, reconstruct

__all__ = ["PRESETS", "Captions", "EditConfig", "edit", "native_side", "reconstruct"]
