"""LAION's aesthetic score: a linear head on a CLIP L/14 image embedding; the prompt plays no part."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from softrepa_pipeline.evaluation.scorers.base import Scorer, ScorerConfig
from softrepa_pipeline.evaluation.scorers.clip import CLIP_L, Clip
from softrepa_pipeline.evaluation.scorers.head import RewardHead
from softrepa_pipeline.evaluation.scorers.weights import loading, read_tensors, source_of

CHECKPOINT = "sac+logos+ava1-l14-linearMSE.pth"


class Aesthetic(Scorer):
    """About 1 to 10; its head comes from a folder, for it is on no hub that we could pin."""

    def __init__(self, config: ScorerConfig) -> None:
        source = source_of(config, None)
        super().__init__(config, str(source))
        with loading(source):
            state = read_tensors(source.file(CHECKPOINT))
        self.head = RewardHead(state["layers.0.weight"].shape[1])
        self.head.load_state_dict(state)
        self.head.float().eval().to(config.device)
        self.clip = Clip(source.companion("config.json", CLIP_L), config.device)

    def score_batch(self, prompts: Sequence[str], images: list[Image.Image]) -> np.ndarray:
        return self.head(self.clip.images(images)).squeeze(-1).double().cpu().numpy()
