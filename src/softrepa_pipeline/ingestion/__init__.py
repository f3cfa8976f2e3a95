"""Ingestion: any captioned images in, one checked table of pairs and a quarantine table out."""

from softrepa_pipeline.ingestion.changes import new_images
from softrepa_pipeline.ingestion.ingest import IngestConfig, ingest
from softrepa_pipeline.ingestion.reading import aspect_ratios, image_ids, iter_captions, read_images
from softrepa_pipeline.ingestion.screens import Removal, leaks
from softrepa_pipeline.ingestion.sources import RawSample, Source, open_source
from softrepa_pipeline.ingestion.tables import Pair, iter_pairs
from softrepa_pipeline.ingestion.validation import BadSample, Limits, check_image, clean_caption, load_rgb

__all__ = [
    "BadSample",
    "IngestConfig",
    "Limits",
    "Pair",
    "RawSample",
    "Removal",
    "Source",
    "aspect_ratios",
    "check_image",
    "clean_caption",
    "image_ids",
    "ingest",
    "iter_captions",
    "iter_pairs",
    "leaks",
    "load_rgb",
    "new_images",
    "open_source",
    "read_images",
]
