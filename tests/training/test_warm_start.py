"""A training that goes on from trained tokens, on what is new and some of what is old."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from training_settings import CONFIG, EXECUTION

from softrepa_pipeline.backbones import Backbone
from softrepa_pipeline.soft_tokens import SoftTokens, SoftTokensConfig, save_soft_tokens
from softrepa_pipeline.training import TrainingSet, fit
from softrepa_pipeline.training.initial import initial_tokens
from softrepa_pipeline.training.replay import write_replay

A, B, C, D, E = (letter * 32 for letter in "abcde")


@pytest.fixture
def trained(sd3: Backbone, data: TrainingSet, tmp_path: Path) -> Path:
    tokens = fit(sd3, data, CONFIG, tmp_path / "first", EXECUTION)
    file = tmp_path / "first.safetensors"
    save_soft_tokens(tokens, file, {"family": "sd3"})
    return file


@pytest.mark.parametrize("objective", ["softrepa", "agsm"])
def test_a_training_starts_from_the_tokens_of_a_file(
    sd3: Backbone, data: TrainingSet, trained: Path, objective: str
) -> None:
    config = replace(CONFIG, objective=objective, start_from=str(trained))
    start = initial_tokens(sd3, sd3.sites(config.layers), config, data.latents.shape[1:])
    cold = initial_tokens(sd3, sd3.sites(CONFIG.layers), CONFIG, data.latents.shape[1:])
    assert not torch.equal(start.base, cold.base)
    still = replace(config, num_steps=1, learning_rate=1e-12, weight_decay=0.0, ema_decay=0.0)
    tokens = fit(sd3, data, still, trained.parent / objective, EXECUTION)
    torch.testing.assert_close(tokens.base, start.base, rtol=0, atol=1e-6)


def test_tokens_of_another_shape_are_refused(sd3: Backbone, data: TrainingSet, tmp_path: Path) -> None:
    file = tmp_path / "other.safetensors"
    save_soft_tokens(SoftTokens(SoftTokensConfig(("0", "1"), 3, 128, 4)), file, {"family": "sd3"})
    config = replace(CONFIG, start_from=str(file))
    with pytest.raises(ValueError, match=r"fit\.start_from: .* have num_tokens 3, the settings ask for 2"):
        initial_tokens(sd3, sd3.sites(config.layers), config, data.latents.shape[1:])


@pytest.mark.parametrize(("replay", "old"), [(0.0, 0), (1.0, 1), (5.0, 3)])
def test_replay_takes_what_is_new_and_some_of_what_is_old(
    negatives_file: Path, tmp_path: Path, replay: float, old: int
) -> None:
    file = tmp_path / "replay.parquet"
    assert write_replay(negatives_file, {A, B}, {B}, replay, 0, file) == 1 + old
    table = pq.read_table(file)
    ids = table["image_id"].to_pylist()
    assert ids == sorted(ids)
    assert A in ids
    assert B not in ids
    assert table.schema == pq.read_schema(negatives_file)
    again = tmp_path / "again.parquet"
    write_replay(negatives_file, {A, B}, {B}, replay, 0, again)
    assert again.read_bytes() == file.read_bytes()
