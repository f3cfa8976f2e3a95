"""CLIP embeddings and hard negatives."""

from softrepa_pipeline.mining.corpus import Corpus
from softrepa_pipeline.mining.embed import ClipEncoder
from softrepa_pipeline.mining.embeddings import Embeddings
from softrepa_pipeline.mining.index import IndexConfig
from softrepa_pipeline.mining.mine import Captioned, MineConfig, mine, mine_corpus
from softrepa_pipeline.mining.policy import Guards, Policy

__all__ = [
    "Captioned",
    "ClipEncoder",
    "Corpus",
    "Embeddings",
    "Guards",
    "IndexConfig",
    "MineConfig",
    "Policy",
    "mine",
    "mine_corpus",
]
