"""`softrepa edit`: an image of the user's own, and what may be wrong with it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from disks import fill
from PIL import Image

from softrepa_pipeline.commands import main
from softrepa_pipeline.evaluation.editing.benchmark import draw_edits
from softrepa_pipeline.soft_tokens import SoftTokens, SoftTokensConfig, save_soft_tokens


@pytest.fixture
def tokens_file(tmp_path: Path) -> Path:
    tokens = SoftTokens(SoftTokensConfig(("0", "2"), 4, 128, 10), torch.Generator().manual_seed(0))
    with torch.no_grad():
        tokens.base.mul_(50)
    file = tmp_path / "tokens.safetensors"
    save_soft_tokens(tokens, file, {"family": "sd3"})
    return file


@pytest.fixture
def image(tmp_path: Path) -> Path:
    file = tmp_path / "in.png"
    Image.fromarray(draw_edits(1)[0].image).resize((64, 48)).save(file)
    return file


def run(base: Path, image: Path, output: Path, *extra: str, family: str = "sd3") -> Result:
    common = ["edit", "--family", family, "--base", str(base), "--max-sequence-length", "0", "--image", str(image)]
    common += ["--source", "a red circle", "--target", "a blue circle", "--steps", "3", "--start-step", "1"]
    return CliRunner().invoke(main, [*common, "--output", str(output), *extra])


def edited(base: Path, image: Path, output: Path, *extra: str) -> np.ndarray:
    done = run(base, image, output, *extra)
    assert done.exit_code == 0, done.output
    return np.asarray(Image.open(output))


def test_it_edits_an_image_with_and_without_tokens(
    sd3_folder: Path, image: Path, tokens_file: Path, tmp_path: Path
) -> None:
    base = edited(sd3_folder, image, tmp_path / "base.png")
    soft = edited(sd3_folder, image, tmp_path / "new" / "soft.png", "--tokens", str(tokens_file))
    none = ["--tokens", str(tokens_file), "--strength", "0", "--target-guidance", "13.5"]
    assert base.shape == (32, 32, 3)
    assert not np.array_equal(base, soft)
    np.testing.assert_array_equal(base, edited(sd3_folder, image, tmp_path / "none.png", *none))
    assert edited(sd3_folder, image, tmp_path / "base.jpg").shape == (32, 32, 3)


def test_a_photograph_is_edited_upright_and_transparency_over_white(sd3_folder: Path, tmp_path: Path) -> None:
    upright = Image.fromarray(draw_edits(1)[0].image)
    upright.save(tmp_path / "upright.png")
    turned, exif = upright.transpose(Image.Transpose.ROTATE_90), Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise when shown
    turned.save(tmp_path / "turned.png", exif=exif)
    expected = edited(sd3_folder, tmp_path / "upright.png", tmp_path / "a.png")
    np.testing.assert_array_equal(edited(sd3_folder, tmp_path / "turned.png", tmp_path / "b.png"), expected)
    Image.new("RGBA", (32, 32), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    Image.new("RGB", (32, 32), (255, 255, 255)).save(tmp_path / "white.png")
    expected = edited(sd3_folder, tmp_path / "white.png", tmp_path / "c.png")
    np.testing.assert_array_equal(edited(sd3_folder, tmp_path / "clear.png", tmp_path / "d.png"), expected)


@pytest.mark.parametrize("damage", ["empty", "text", "cut", "broken"])
def test_a_damaged_image_is_named(sd3_folder: Path, image: Path, tmp_path: Path, damage: str) -> None:
    whole = image.read_bytes()
    # The broken one's first chunk is longer than it says.
    content = {"empty": b"", "text": b"no image", "cut": whole[:-40], "broken": whole[:40] + b"xx" + whole[40:]}
    image.write_bytes(content[damage])
    done = run(sd3_folder, image, tmp_path / "out.png")
    assert done.exit_code == 1
    assert f"Error: --image {image} cannot be used: " in done.output
    assert not (tmp_path / "out.png").exists()


def test_what_is_missing_or_does_not_fit_is_named(
    sd3_folder: Path, model_folders: dict[str, Path], image: Path, tokens_file: Path, tmp_path: Path
) -> None:
    out, tokens = tmp_path / "out.png", str(tokens_file)
    for done, message in (
        (run(sd3_folder, tmp_path / "none.png", out), f"File '{tmp_path}/none.png' does not exist"),
        (run(sd3_folder, image, out, "--tokens", f"{tmp_path}/none"), f"Error: no soft tokens at {tmp_path}/none"),
        (
            run(model_folders["sdxl"], image, out, "--tokens", tokens, family="sdxl"),
            f"Error: {tokens} holds soft tokens for family sd3, not for sdxl",
        ),
        (run(sd3_folder, image, out, "--method", "pnp"), "Error: edit.method pnp is for sd15, sdxl, not for sd3"),
        (
            run(sd3_folder, image, tmp_path / "out.xyz"),
            f"Error: {tmp_path}/out.xyz: no image format is called '.xyz'",
        ),
        (run(tmp_path / "no model", image, out), "no model"),
    ):
        assert done.exit_code != 0
        assert message in done.output
        assert not isinstance(done.exception, (OSError, ValueError))
    assert not out.exists()


def test_a_full_disk_is_named_and_the_image_before_stands(sd3_folder: Path, image: Path, small_disk: Path) -> None:
    output = small_disk / "out.png"
    Image.new("RGB", (8, 8)).save(output)
    before = output.read_bytes()
    fill(small_disk)
    done = run(sd3_folder, image, output)
    assert f"Error: [Errno 28] No space left on device: '{output}'" in done.output
    assert output.read_bytes() == before
    assert sorted(file.name for file in small_disk.iterdir()) == ["ballast", "out.png"]
