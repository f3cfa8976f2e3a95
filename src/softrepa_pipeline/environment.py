"""What must hold before Kedro's plugins import MLflow: environment variables, and silence about what nobody can change.

`kedro` calls `prepare` first of all (entry point `kedro.init`), settings.py again for sessions started from Python.
"""

import logging
import os
from pathlib import Path

from kedro.utils import find_kedro_project

from softrepa_pipeline.quiet import keep_quiet

_PACKAGE = Path(__file__).resolve().parent
PROJECT = find_kedro_project(Path.cwd()) or find_kedro_project(_PACKAGE)
# Installed from a wheel and called outside of any project: paths are the caller's, the defaults those in the wheel.
ROOT = PROJECT or Path.cwd()
CONF = ROOT / "conf" if PROJECT else _PACKAGE / "conf"

_NOISE = ("register_new_resolver() is deprecated", "Add type hints to the", "Option '--pipeline' is deprecated")


def prepare() -> None:
    """Name the MLflow store, have it watch the machine, switch telemetry off and drop the warnings of `_NOISE`."""
    # A relative SQLite address would follow the working directory, and MLflow 3 refuses the file store.
    os.environ.setdefault("MLFLOW_TRACKING_URI", f"sqlite:///{ROOT / 'mlflow.db'}")
    os.environ.setdefault("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", "true")
    keep_quiet()
    # MLflow resets the filters of `warnings`, so these are dropped where they would be shown.
    logging.captureWarnings(True)
    logging.getLogger("py.warnings").addFilter(_is_not_noise)


def _is_not_noise(record: logging.LogRecord) -> bool:
    return not any(text in record.getMessage() for text in _NOISE)
