"""CLIP embeddings and hard negatives."""

from softrepa_pipeline.mining.embed import ClipEncoder
from softrepa_pipeline.mining.embeddings import Embeddings
from softrepa_pipeline.mining.mine import Captioned, MineConfig, mine

__all__ = ["Captioned", "ClipEncoder", "Embeddings", "MineConfig", "mine"]
