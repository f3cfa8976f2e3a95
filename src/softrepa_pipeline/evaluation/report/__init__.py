"""An evaluation as a person reads it: tables, figures, and one HTML file that needs no network."""

from softrepa_pipeline.evaluation.report.page import Context, write_report
from softrepa_pipeline.evaluation.report.tables import format_table, results_page

__all__ = ["Context", "format_table", "results_page", "write_report"]
