"""The embedded world's exact verifier as a scorer: 1 where the image bears its prompt's claim out, else 0."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image

from softrepa_pipeline.evaluation.scorers.base import Scorer, ScorerConfig
from softrepa_pipeline.shapes.claims import Claim
from softrepa_pipeline.shapes.verifier import verify


class WorldVerifier(Scorer):
    """Judges by the claim of each prompt; `claims` holds those of all prompts that will be asked for."""

    scale = 100.0

    def __init__(self, config: ScorerConfig, claims: Mapping[str, Claim]) -> None:
        super().__init__(config, "softrepa_pipeline.shapes.verifier")
        self.claims = claims

    def score_batch(self, prompts: Sequence[str], images: list[Image.Image]) -> np.ndarray:
        """Raises ValueError for a prompt without a claim."""
        for prompt in prompts:
            if prompt not in self.claims:
                raise ValueError(f"the verifier judges the embedded world's prompts; it knows no claim of {prompt!r}")
        pairs = zip(prompts, images, strict=True)
        return np.array([float(verify(np.asarray(image), self.claims[prompt])) for prompt, image in pairs])
