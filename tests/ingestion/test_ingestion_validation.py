"""Images under limits, colour models, orientation, and captions."""

import io
import struct
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from softrepa_pipeline.ingestion import BadSample, Limits, check_image, clean_caption, load_rgb

SAMPLE = Path(__file__).parents[2] / "data/01_raw/coco_sample"
LIMITS = Limits()


def encode(image: Image.Image, image_format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def png_of_zeros(width: int, height: int, complete: bool = True) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0))
    rows = zlib.compress(bytes((1 + (width + 7) // 8) * height)) if complete else b"no pixels"
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def reason_against(data: bytes, limits: Limits = LIMITS) -> str:
    with warnings.catch_warnings(action="error"), pytest.raises(BadSample) as caught:
        check_image(data, limits)
    return caught.value.reason


def test_real_photos_pass_with_their_size() -> None:
    photos = sorted(SAMPLE.glob("*.jpg"))
    assert len(photos) == 24
    for photo in photos:
        checked = check_image(photo.read_bytes(), LIMITS)
        assert (checked.width, checked.height) == Image.open(photo).size
        assert max(checked.width, checked.height) == 256


def test_bytes_are_checked_before_anything_is_parsed() -> None:
    assert reason_against(b"not an image, but too long first", Limits(max_bytes=5)) == "more than 5 bytes"
    assert reason_against(b"") == "empty file"


@pytest.mark.parametrize("side", [8_200, 12_000, 20_000])
def test_pixels_are_checked_before_decoding(side: int) -> None:
    # Without pixel data a decoder would report damage, so the reason shows that none ran. The sides lie on each
    # side of the counts at which Pillow itself warns and raises.
    assert reason_against(png_of_zeros(side, side, complete=False)) == "more than 64000000 pixels"


def test_a_bomb_that_would_decode_is_refused() -> None:
    assert reason_against(png_of_zeros(20_000, 20_000)) == "more than 64000000 pixels"


def test_sides_and_aspect_ratio() -> None:
    limits = Limits(min_side=32, max_aspect_ratio=4)
    assert check_image(encode(Image.new("L", (128, 32)), "PNG"), limits).size == (128, 32)
    assert reason_against(encode(Image.new("L", (64, 31)), "PNG"), limits) == "a side below 32 pixels"
    assert reason_against(encode(Image.new("L", (129, 32)), "PNG"), limits) == "aspect ratio above 4"


@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
def test_truncated_jpeg_is_damaged(share: float) -> None:
    data = next(SAMPLE.glob("*.jpg")).read_bytes()
    assert reason_against(data[: int(share * len(data))]) == "damaged image"


@pytest.mark.parametrize("num_files", [200, pytest.param(20_000, marks=pytest.mark.slow)])
def test_random_damage_is_refused_with_a_reason_or_harmless(num_files: int) -> None:
    rng = np.random.default_rng(0)
    photos = [photo.read_bytes() for photo in sorted(SAMPLE.glob("*.jpg"))]
    photos += [encode(Image.open(io.BytesIO(photos[0])), kind) for kind in ("PNG", "WEBP", "GIF", "BMP", "TIFF")]
    reasons = []
    for number in range(num_files):
        damaged = bytearray(photos[number % len(photos)])
        for position in rng.integers(len(damaged), size=rng.integers(1, 50)):
            damaged[position] = rng.integers(256)
        try:
            check_image(bytes(damaged), LIMITS)
        except BadSample as bad:
            reasons.append(bad.reason)
            continue
        assert load_rgb(bytes(damaged)).mode == "RGB"
    assert reasons
    assert all(reasons)


def test_bytes_of_another_kind_are_not_an_image() -> None:
    assert reason_against(b"A page that says 404 not found.") == "not an image"
    assert reason_against(encode(Image.new("RGB", (64, 64)), "EPS")) == "not an image"
    assert reason_against(encode(Image.new("RGB", (64, 64)), "JPEG")[:4]) == "not an image"


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_turns_the_image_upright(orientation: int) -> None:
    upright = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 64, 3), np.uint8))
    # How a camera that was held so stores the upright scene: the inverse of what the tag asks for.
    stored = {
        1: upright,
        2: upright.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        3: upright.transpose(Image.Transpose.ROTATE_180),
        4: upright.transpose(Image.Transpose.FLIP_TOP_BOTTOM),
        5: upright.transpose(Image.Transpose.TRANSPOSE),
        6: upright.transpose(Image.Transpose.ROTATE_90),
        7: upright.transpose(Image.Transpose.TRANSVERSE),
        8: upright.transpose(Image.Transpose.ROTATE_270),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(stored, "PNG", exif=exif)
    assert np.array_equal(np.asarray(load_rgb(data)), np.asarray(upright))
    assert check_image(data, LIMITS).size == (64, 40)


def test_damaged_exif_costs_nothing() -> None:
    data = encode(Image.new("RGB", (64, 48)), "JPEG", exif=b"Exif\0\0no tags here")
    assert check_image(data, LIMITS).size == (64, 48)


def test_cmyk_and_grey_become_rgb() -> None:
    red = load_rgb(encode(Image.new("RGB", (64, 48), "red").convert("CMYK"), "JPEG", quality=95))
    assert red.mode == "RGB"
    assert np.abs(np.asarray(red, int)[20, 20] - [255, 0, 0]).max() < 12
    grey = load_rgb(encode(Image.new("L", (64, 48), 77), "PNG"))
    assert grey.getpixel((5, 5)) == (77, 77, 77)


def test_sixteen_bit_grey_is_scaled_not_clipped() -> None:
    data = encode(Image.fromarray(np.full((48, 64), 0x4D00, np.uint16)), "PNG")
    assert load_rgb(data).getpixel((5, 5)) == (0x4D, 0x4D, 0x4D)


def test_float_pixels_have_no_range() -> None:
    assert reason_against(encode(Image.new("F", (64, 48)), "TIFF")) == "pixel type F has no agreed range"


def test_transparency_is_laid_over_white() -> None:
    half = Image.new("RGBA", (64, 48), (255, 0, 0, 128))
    assert load_rgb(encode(half, "PNG")).getpixel((0, 0)) == (255, 127, 127)
    palette = Image.new("P", (64, 48), 0)
    palette.putpalette([0, 0, 0, 0, 0, 255])
    palette.paste(1, (32, 0, 64, 48))
    image = load_rgb(encode(palette, "PNG", transparency=b"\x00\xff"))
    assert image.mode == "RGB"
    assert [image.getpixel((5, 5)), image.getpixel((40, 5))] == [(255, 255, 255), (0, 0, 255)]


def test_first_frame_of_an_animation() -> None:
    frames = [Image.new("RGB", (64, 48), colour) for colour in ("lime", "red", "blue")]
    data = encode(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert load_rgb(data).getpixel((5, 5)) == (0, 255, 0)
    assert check_image(data, LIMITS).size == (64, 48)


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("  two\tdogs \r\n on\u00a0a  bed ", "two dogs on a bed"),
        ("cafe\u0301", "caf\u00e9"),
        ("a\x00 cat\x07\u202e \ufeffhere\u200b", "a cat here"),
        ("broken \ud83d emoji", "broken emoji"),
        ("family \U0001f469\u200d\U0001f467", "family \U0001f469\u200d\U0001f467"),
        ("猫と犬", "猫と犬"),
    ],
)
def test_captions_are_normalised(text: str, cleaned: str) -> None:
    assert clean_caption(text, LIMITS) == cleaned
    assert clean_caption(cleaned, LIMITS) == cleaned


@pytest.mark.parametrize("text", ["", " \n\t", "\x00\x01", "\u200b\ufeff", "\u200d \u200c"])
def test_captions_without_content_are_empty(text: str) -> None:
    with pytest.raises(BadSample, match="empty caption"):
        clean_caption(text, LIMITS)


def test_caption_length_counts_the_cleaned_text() -> None:
    limits = Limits(max_caption_chars=5)
    assert clean_caption("  12345  ", limits) == "12345"
    with pytest.raises(BadSample, match="longer than 5 characters"):
        clean_caption("123456", limits)


@pytest.mark.parametrize("setting", [{"min_side": 0}, {"max_pixels": 10**9}, {"max_aspect_ratio": 0.5}])
def test_limits_that_make_no_sense_are_refused(setting: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(setting))):
        Limits(**setting)
