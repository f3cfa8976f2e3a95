"""GenEval as a scorer: 1 where an image shows what its prompt asks for, by detector, colours and rules; else 0."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
from PIL import Image

from softrepa_pipeline.evaluation.scorers.base import Scorer, ScorerConfig
from softrepa_pipeline.evaluation.scorers.clip import CLIP_L, Clip
from softrepa_pipeline.evaluation.scorers.geneval_detector import ClipColors, Detector
from softrepa_pipeline.evaluation.scorers.geneval_rules import Request, judge
from softrepa_pipeline.evaluation.scorers.weights import Source, source_of

# GenEval's own detector, Mask2Former Swin-S on COCO instances, in its authors' release for transformers.
MASK2FORMER = Source("facebook/mask2former-swin-small-coco-instance", "f77f179fc62b98f6734481ebbef5bceeb1e7f10b")


class GenEval(Scorer):
    """Judges by each prompt's request; a folder may hold the CLIP of the colours under `clip/`."""

    scale = 100.0

    def __init__(self, config: ScorerConfig, requests: Mapping[str, Request]) -> None:
        source = source_of(config, MASK2FORMER)
        clip = source.companion("clip/config.json", CLIP_L)
        super().__init__(config, str(source))
        self.requests = requests
        self.detector = Detector(source, config.device)
        self.colors = ClipColors(Clip(Source(f"{clip.model}/clip") if clip is source else clip, config.device))

    def score_batch(self, prompts: Sequence[str], images: list[Image.Image]) -> np.ndarray:
        """Raises ValueError for a prompt that is not GenEval's."""
        for prompt in prompts:
            if not isinstance(self.requests.get(prompt), Request):
                raise ValueError(f"GenEval judges its own prompts; {prompt!r} is none of them")
        return np.array([self._meets(prompt, image) for prompt, image in zip(prompts, images, strict=True)])

    def _meets(self, prompt: str, image: Image.Image) -> float:
        name_colors = partial(self.colors.name, image)
        return float(judge(self.requests[prompt], self.detector.detect(image), name_colors).correct)
