"""What must hold before Kedro's plugins import MLflow: environment variables, and silence about what nobody can change.

`kedro` calls `prepare` first of all (entry point `kedro.init`), settings.py again for sessions started from Python.
"""

import logging
import os
from pathlib import Path

from kedro.utils import find_kedro_project

ROOT = find_kedro_project(Path.cwd()) or Path(__file__).resolve().parents[2]

_NO_TELEMETRY = ("DO_NOT_TRACK", "KEDRO_DISABLE_TELEMETRY", "MLFLOW_DISABLE_TELEMETRY", "HF_HUB_DISABLE_TELEMETRY")
_NOISE = ("register_new_resolver() is deprecated", "Add type hints to the", "Option '--pipeline' is deprecated")


def prepare() -> None:
    """Name the MLflow store, switch telemetry off and drop the warnings of `_NOISE`."""
    # A relative SQLite address would follow the working directory, and MLflow 3 refuses the file store.
    os.environ.setdefault("MLFLOW_TRACKING_URI", f"sqlite:///{ROOT / 'mlflow.db'}")
    for variable in _NO_TELEMETRY:
        os.environ.setdefault(variable, "true")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # else one line per image processor without torchvision
    # Diffusers warns at every call of the padding that it cuts from captions of full length; a level that is set before
    # it is imported does not hold.
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    # MLflow resets the filters of `warnings`, so these are dropped where they would be shown.
    logging.captureWarnings(True)
    logging.getLogger("py.warnings").addFilter(_is_not_noise)


def _is_not_noise(record: logging.LogRecord) -> bool:
    return not any(text in record.getMessage() for text in _NOISE)
