"""A data set of captions without images can be ingested, but not trained on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from ingestion_samples import ingest_folder

from softrepa_pipeline.pipelines.fit.nodes import fit_tokens


def test_training_on_captions_alone_is_a_clear_error(tmp_path: Path) -> None:
    lines = (json.dumps({"image_id": number, "caption": f"caption {number}"}) for number in range(3))
    (tmp_path / "captions.jsonl").write_text("\n".join(lines))
    pairs = ingest_folder(tmp_path / "captions.jsonl", tmp_path / "out")
    with pytest.raises(ValueError, match=r"out holds captions without images, which can be mined but not trained on"):
        fit_tokens(pairs, {}, {}, {}, {}, {}, {}, {}, {}, force=False)
