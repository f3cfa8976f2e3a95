from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from softrepa_pipeline.soft_tokens import SoftTokens, SoftTokensConfig, load_soft_tokens, save_soft_tokens

CONFIG = SoftTokensConfig(layers=("0", "1", "4"), num_tokens=4, width=8, num_buckets=100)


def test_tokens_are_base_plus_time_offset_of_the_layer() -> None:
    tokens = SoftTokens(CONFIG, torch.Generator().manual_seed(0))
    out = tokens(torch.tensor([0.0, 9.99, 10.0, 555.5]))
    assert tokens.time is not None
    assert out.shape == (3, 4, 4, 8)
    for sample, bucket in enumerate([0, 0, 1, 55]):
        for layer in range(3):
            expected = tokens.base[layer] + tokens.time[bucket, layer * 8 : (layer + 1) * 8]
            torch.testing.assert_close(out[layer, sample], expected)


def test_last_timestep_falls_into_last_bucket_and_moves_no_other_sample() -> None:
    tokens = SoftTokens(CONFIG)
    alone = tokens(torch.tensor([300.0]))
    beside = tokens(torch.tensor([300.0, 1000.0]))
    torch.testing.assert_close(beside[:, 0], alone[:, 0], rtol=0, atol=0)
    torch.testing.assert_close(beside[:, 1], tokens(torch.tensor([999.0]))[:, 0], rtol=0, atol=0)


def test_without_buckets_the_timestep_changes_nothing() -> None:
    tokens = SoftTokens(SoftTokensConfig(("0", "1"), 4, 8, num_buckets=0))
    out = tokens(torch.tensor([1.0, 900.0]))
    torch.testing.assert_close(out[:, 0], out[:, 1], rtol=0, atol=0)


@pytest.mark.parametrize(
    ("config", "count"),
    [
        (SoftTokensConfig(("down",), 4, 768, 100, shared=True), 79_872),
        (SoftTokensConfig(("down", "mid"), 4, 2048, 0, shared=True), 8_192),
        (SoftTokensConfig(("0", "1", "2", "3", "4"), 4, 1536, 100), 798_720),
    ],
)
def test_published_shapes_have_published_sizes(config: SoftTokensConfig, count: int) -> None:
    assert sum(p.numel() for p in SoftTokens(config).parameters()) == count


def test_file_round_trip(tmp_path: Path) -> None:
    tokens = SoftTokens(CONFIG)
    save_soft_tokens(tokens, tmp_path / "t.safetensors", {"family": "sd3"})
    loaded, metadata = load_soft_tokens(tmp_path / "t.safetensors")
    assert metadata["family"] == "sd3"
    assert loaded.config == CONFIG
    for name, value in tokens.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[name], value, rtol=0, atol=0)


def test_non_finite_tokens_are_not_written(tmp_path: Path) -> None:
    tokens = SoftTokens(CONFIG)
    with torch.no_grad():
        tokens.base[0, 0, 0] = torch.nan
    with pytest.raises(ValueError, match="non-finite value in 'base'"):
        save_soft_tokens(tokens, tmp_path / "t.safetensors", {})
    assert list(tmp_path.iterdir()) == []


def test_damaged_and_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="kedro run --pipeline train"):
        load_soft_tokens(tmp_path / "none.safetensors")
    save_soft_tokens(SoftTokens(CONFIG), tmp_path / "t.safetensors", {})
    whole = (tmp_path / "t.safetensors").read_bytes()
    (tmp_path / "t.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"t\.safetensors is not a readable safetensors file"):
        load_soft_tokens(tmp_path / "t.safetensors")


def test_file_of_a_later_version_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("softrepa_pipeline.soft_tokens.FORMAT_VERSION", "99")
    save_soft_tokens(SoftTokens(CONFIG), tmp_path / "t.safetensors", {})
    monkeypatch.undo()
    with pytest.raises(ValueError, match="version 99; this program reads 1 to 2"):
        load_soft_tokens(tmp_path / "t.safetensors")


def test_shared_tokens_are_one_layer_for_all(tmp_path: Path) -> None:
    tokens = SoftTokens(SoftTokensConfig(("down", "mid"), 4, 8, 10, shared=True))
    assert tokens(torch.tensor([1.0, 900.0])).shape == (1, 2, 4, 8)
    save_soft_tokens(tokens, tmp_path / "t.safetensors", {"family": "sdxl"})
    assert load_soft_tokens(tmp_path / "t.safetensors")[0].config == tokens.config


def test_a_file_of_the_first_version_still_loads(tmp_path: Path) -> None:
    """As version 1 wrote it: layers counted in the configuration and named beside it."""
    tensors = {"base": torch.randn(2, 4, 8), "time": torch.randn(10, 16)}
    config = {"num_layers": 2, "num_tokens": 4, "width": 8, "num_buckets": 10}
    metadata = {"format_version": "1", "config": json.dumps(config), "layers": "[0, 3]", "family": "sd3"}
    save_file(tensors, tmp_path / "old.safetensors", metadata=metadata)
    tokens, read = load_soft_tokens(tmp_path / "old.safetensors")
    assert tokens.config == SoftTokensConfig(("0", "3"), 4, 8, 10)
    assert read["family"] == "sd3"
    assert torch.equal(tokens.base, tensors["base"])


def test_tokens_of_another_family_and_tensors_of_another_shape_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "t.safetensors"
    save_soft_tokens(SoftTokens(CONFIG), file, {"family": "sd3"})
    with pytest.raises(ValueError, match="holds soft tokens for family sd3, not for sdxl"):
        load_soft_tokens(file, "sdxl")
    with safe_open(file, framework="pt") as opened:
        metadata = opened.metadata()
    save_file({"base": torch.zeros(3, 5, 8), "time": torch.zeros(100, 24)}, file, metadata=metadata)
    with pytest.raises(ValueError, match=r"\(3, 5, 8\).* but its configuration asks for .*\(3, 4, 8\)"):
        load_soft_tokens(file)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"config": None}, "has no valid configuration"),
        ({"config": "{"}, "has no valid configuration"),
        ({"config": '{"num_token": 4}'}, "unknown parameter config.num_token; did you mean config.num_tokens"),
        ({"family": None}, "does not say which family"),
    ],
)
def test_a_spoiled_header_is_named(tmp_path: Path, change: dict[str, str | None], message: str) -> None:
    file = tmp_path / "t.safetensors"
    save_soft_tokens(SoftTokens(CONFIG), file, {"family": "sd3"})
    with safe_open(file, framework="pt") as opened:
        metadata = {**opened.metadata(), **change}
        tensors = {name: opened.get_tensor(name) for name in ("base", "time")}
    save_file(tensors, file, metadata={name: value for name, value in metadata.items() if value is not None})
    with pytest.raises(ValueError, match=message):
        load_soft_tokens(file)


def test_non_finite_tokens_are_not_loaded(tmp_path: Path) -> None:
    file = tmp_path / "t.safetensors"
    save_soft_tokens(SoftTokens(CONFIG), file, {"family": "sd3"})
    with safe_open(file, framework="pt") as opened:
        metadata = opened.metadata()
    save_file({"base": torch.full((3, 4, 8), torch.nan), "time": torch.zeros(100, 24)}, file, metadata=metadata)
    with pytest.raises(ValueError, match="holds a value that is not finite"):
        load_soft_tokens(file)
