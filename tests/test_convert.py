"""Published `.pth` files: a small synthetic one of their structure, hostile ones, and the real ones where they are."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from torch import nn

from softrepa_pipeline.commands import main
from softrepa_pipeline.convert import read_published
from softrepa_pipeline.soft_tokens import SoftTokensConfig, load_soft_tokens

PUBLISHED = Path(__file__).parents[2] / "shared/data/softrepa_tokens/tokens"
SIZES = {"sd15": ("sd1.5", 79_872), "sdxl": ("sdxl", 8_192), "sd3": ("sd3", 798_720)}


def write_sd3(folder: Path) -> tuple[nn.Parameter, nn.Embedding]:
    """As the public code saves them: a parameter, and a whole pickled embedding."""
    base, table = nn.Parameter(torch.randn(3, 4, 8)), nn.Embedding(100, 24)
    torch.save(base, folder / "dc_tokens.pth")
    torch.save(table, folder / "dc_t_tokens.pth")
    return base, table


def test_a_pickled_parameter_and_embedding_become_one_file(tmp_path: Path) -> None:
    base, table = write_sd3(tmp_path)
    file = tmp_path / "out/sd3.safetensors"
    arguments = ["convert", "--family", "sd3", "--licence", "none stated", str(tmp_path), "--output", str(file)]
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 0, done.output
    tokens, metadata = load_soft_tokens(file, "sd3")
    assert tokens.config == SoftTokensConfig(("0", "1", "2"), 4, 8, 100)
    assert metadata["licence"] == "none stated"
    time = table.weight[37].view(3, 1, 8)
    torch.testing.assert_close(tokens(torch.tensor([375.0]))[:, 0], base + time)


def test_unet_tables_are_shared_by_the_published_stages(tmp_path: Path) -> None:
    torch.save(nn.Parameter(torch.randn(4, 16)), tmp_path / "dc_tokens.pth")
    assert read_published("sdxl", tmp_path).config == SoftTokensConfig(("down", "mid"), 4, 16, 0, shared=True)
    assert read_published("sd15", tmp_path).config.layers == ("down",)
    with pytest.raises(ValueError, match=r"has shape \(4, 16\), which is not that of softrepa for sd3"):
        read_published("sd3", tmp_path)


def test_agsm_s_positive_bank_is_taken(tmp_path: Path) -> None:
    base, table = nn.Parameter(torch.randn(2, 3, 4, 8)), nn.Embedding(100, 24)
    torch.save(base, tmp_path / "soft_tokens.pth")
    torch.save(table, tmp_path / "soft_t_tokens.pth")
    tokens = read_published("sd3", tmp_path, "agsm")
    assert torch.equal(tokens.base, base[0])
    assert torch.equal(tokens.time, table.weight)
    torch.save(nn.Parameter(torch.randn(2, 4, 16)), tmp_path / "soft_tokens.pth")
    (tmp_path / "soft_t_tokens.pth").unlink()
    assert read_published("sd15", tmp_path, "agsm").config.layers == ("down", "mid")
    with pytest.raises(ValueError, match=r"shape \(2, 4, 16\), which is not that of agsm for sd3"):
        read_published("sd3", tmp_path, "agsm")


class Hostile:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.mark}",)


def test_a_hostile_pickle_is_refused_and_not_run(tmp_path: Path) -> None:
    mark = tmp_path / "run"
    torch.save(Hostile(mark), tmp_path / "dc_tokens.pth")
    with pytest.raises(ValueError, match=r"dc_tokens\.pth is refused"):
        read_published("sd3", tmp_path)
    assert not mark.exists()


def test_damaged_foreign_and_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no dc_tokens\.pth in"):
        read_published("sd3", tmp_path)
    write_sd3(tmp_path)
    whole = (tmp_path / "dc_t_tokens.pth").read_bytes()
    (tmp_path / "dc_t_tokens.pth").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"dc_t_tokens\.pth is refused"):
        read_published("sd3", tmp_path)
    torch.save(nn.Embedding(100, 25), tmp_path / "dc_t_tokens.pth")
    with pytest.raises(ValueError, match=r"time is \(100, 25\) where \(100, 24\) fits"):
        read_published("sd3", tmp_path)
    torch.save({"a": 1}, tmp_path / "dc_tokens.pth")
    with pytest.raises(ValueError, match="it holds a dict, not a table of numbers"):
        read_published("sd3", tmp_path)


@pytest.mark.skipif(not PUBLISHED.is_dir(), reason="the published files are not here")
@pytest.mark.parametrize("family", SIZES)
def test_the_published_files_have_the_published_sizes(family: str) -> None:
    folder, size = SIZES[family]
    tokens = read_published(family, PUBLISHED / folder)
    assert tokens.num_parameters == size
    assert 0 < tokens.base.abs().mean() < 10
