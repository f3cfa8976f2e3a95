"""Environment variables that libraries read when they are imported: no telemetry, no chatter."""

import os

_NO_TELEMETRY = ("DO_NOT_TRACK", "KEDRO_DISABLE_TELEMETRY", "MLFLOW_DISABLE_TELEMETRY", "HF_HUB_DISABLE_TELEMETRY")


def keep_quiet() -> None:
    """Set what the user has not set."""
    for variable in _NO_TELEMETRY:
        os.environ.setdefault(variable, "true")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # else one line per image processor without torchvision
    # Diffusers warns at every call of the padding that it cuts from captions of full length; a level that is set before
    # it is imported does not hold.
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
