"""Soft tokens that align text and image in a frozen diffusion model."""

from typing import Any


def __getattr__(name: str) -> Any:
    # Imported on first use: the kedro command should not wait for torch and diffusers.
    if name == "load_pipeline":
        from softrepa_pipeline.inference import load_pipeline

        return load_pipeline
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
