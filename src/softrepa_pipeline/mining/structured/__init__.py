"""Structured negatives: captions made false by rule, in one number, colour, attribute, object or relation."""

from softrepa_pipeline.mining.structured.editor import RULES, CaptionEditor, Edit

__all__ = ["RULES", "CaptionEditor", "Edit"]
