"""Where, how and by whom evaluation images are drawn, and what measures them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from softrepa_pipeline.evaluation.benchmark import Prompts
from softrepa_pipeline.evaluation.generation import Model, generate
from softrepa_pipeline.evaluation.measures import Measures
from softrepa_pipeline.inference import SamplingConfig
from softrepa_pipeline.runners import LocalRunner, Runner


@dataclass(frozen=True)
class Studio:
    """Everything about an evaluation that is the same for all its models; images are kept in `folder`."""

    measures: Measures
    sampling: SamplingConfig
    folder: Path
    runner: Runner = field(default_factory=LocalRunner)

    def draw(self, model: Model, prompts: Prompts, guidance: float, label: str) -> np.ndarray:
        """Images (prompts, seeds, height, width, 3), uint8, see `generation.generate`."""
        return generate(model, prompts.texts, self.sampling, guidance, self.folder, label, self.runner)
