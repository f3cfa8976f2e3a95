"""Studies: one question each, the settings that answer it, what was measured of them, and the page that tells it."""

from softrepa_pipeline.studies.data import DataChange, write_variant
from softrepa_pipeline.studies.measured import Measured, kept_by_digest, read_measured, write_measured
from softrepa_pipeline.studies.page import write_page
from softrepa_pipeline.studies.study import Point, Study, read_study

__all__ = [
    "DataChange",
    "Measured",
    "Point",
    "Study",
    "kept_by_digest",
    "read_measured",
    "read_study",
    "write_measured",
    "write_page",
    "write_variant",
]
