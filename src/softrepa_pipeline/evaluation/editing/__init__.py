"""Editing of images by captions, base against soft tokens."""

from softrepa_pipeline.evaluation.editing.compare import Comparison, SweepConfig, compare
from softrepa_pipeline.evaluation.editing.config import PRESETS, Captions, EditConfig, configured
from softrepa_pipeline.evaluation.editing.edit import edit, native_side
from softrepa_pipeline.evaluation.editing.measures import StructureDistance
from softrepa_pipeline.evaluation.editing.report import draw_front, format_table, triplets, write_edit_report
from softrepa_pipeline.evaluation.editing.summary import summarise

__all__ = [
    "PRESETS",
    "Captions",
    "Comparison",
    "EditConfig",
    "StructureDistance",
    "SweepConfig",
    "compare",
    "configured",
    "draw_front",
    "edit",
    "format_table",
    "native_side",
    "summarise",
    "triplets",
    "write_edit_report",
]
