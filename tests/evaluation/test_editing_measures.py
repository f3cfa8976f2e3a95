"""Each measure against an independent computation on small arrays and tiny random weights."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage
from transformers import Dinov2Config, Dinov2Model, ViTConfig, ViTModel

from softrepa_pipeline.evaluation.editing.measures import (
    StructureDistance,
    measure,
    peak_signal_to_noise,
    squared_error,
    structural_similarity,
)

SOURCE, EDITED = np.random.default_rng(0).integers(0, 256, (2, 2, 16, 16, 3), dtype=np.uint8)
MASKS = np.zeros((2, 16, 16), dtype=bool)
MASKS[:, 4:9, 2:7] = True


def test_background_errors_are_those_of_images_with_the_edited_region_black() -> None:
    found = measure(SOURCE, EDITED, ["a", "b"], MASKS)
    for i in range(2):
        total = 0.0
        for y, x, c in np.ndindex(16, 16, 3):
            if not MASKS[i, y, x]:
                total += (int(SOURCE[i, y, x, c]) - int(EDITED[i, y, x, c])) ** 2 / 255**2
        assert found["background_mse"] is not None
        assert found["background_psnr"] is not None
        np.testing.assert_allclose(found["background_mse"][i], total / 768)
        np.testing.assert_allclose(found["background_psnr"][i], 10 * np.log10(1 / (total / 768)))
    inside = EDITED.copy()
    inside[~MASKS] = SOURCE[~MASKS]
    kept = measure(SOURCE, inside, ["a", "b"], MASKS)
    np.testing.assert_array_equal(kept["background_mse"], 0)
    np.testing.assert_allclose(kept["background_psnr"], 58.92, atol=0.01)


def test_whole_numbers_do_not_wrap() -> None:
    black, white = np.zeros((1, 1, 3), np.uint8), np.full((1, 1, 3), 255, np.uint8)
    assert squared_error(black, white) == squared_error(white, black) == 1
    assert peak_signal_to_noise(black, white) == 0


def test_structural_similarity_is_the_published_formula() -> None:
    pytest.importorskip("torchmetrics")
    found = structural_similarity(SOURCE, EDITED)
    for i in range(2):
        values = []
        for c in range(3):
            first, second = SOURCE[i, ..., c] / 255, EDITED[i, ..., c] / 255
            mean = {
                name: ndimage.gaussian_filter(image, 1.5, truncate=5 / 1.5, mode="mirror")
                for name, image in {
                    "x": first,
                    "y": second,
                    "xx": first**2,
                    "yy": second**2,
                    "xy": first * second,
                }.items()
            }
            deviation_x, deviation_y = mean["xx"] - mean["x"] ** 2, mean["yy"] - mean["y"] ** 2
            common = mean["xy"] - mean["x"] * mean["y"]
            c1, c2 = 0.01**2, 0.03**2
            similarity = (2 * mean["x"] * mean["y"] + c1) * (2 * common + c2)
            similarity /= (mean["x"] ** 2 + mean["y"] ** 2 + c1) * (deviation_x + deviation_y + c2)
            values.append(similarity.mean())
        np.testing.assert_allclose(found[i], np.mean(values), atol=1e-4)
    np.testing.assert_allclose(structural_similarity(SOURCE, SOURCE), 1, atol=1e-6)


def tiny_dino(folder: Path, kind: str) -> Path:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 56}
    model = (
        ViTModel(ViTConfig(**sizes, intermediate_size=32, image_size=224), add_pooling_layer=False)
        if kind == "dino"
        else Dinov2Model(Dinov2Config(**sizes, image_size=224))
    )
    model.save_pretrained(folder / kind)
    return folder / kind


@pytest.mark.parametrize("kind", ["dino", "dinov2"])
def test_structure_distance_compares_the_cosines_of_the_last_keys(kind: str, tmp_path: Path) -> None:
    measured = StructureDistance(str(tiny_dino(tmp_path, kind)))
    similarities = []
    for image in (SOURCE[0], EDITED[0]):
        large = torch.nn.functional.interpolate(
            torch.from_numpy(image).permute(2, 0, 1)[None] / 255, (224, 224), mode="bicubic", antialias=True
        ).clamp(0, 1)
        pixels = (large[0].permute(1, 2, 0) - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225])
        hidden = measured.model(pixels.permute(2, 0, 1)[None], output_hidden_states=True).hidden_states[1]
        layers = getattr(measured.model, "layers", None) or measured.model.encoder.layer
        last = layers[-1]
        norm = getattr(last, "norm1", None) or last.layernorm_before
        projection = next(module for name, module in last.named_modules() if name.endswith(("k_proj", "key")))
        keys = projection(norm(hidden))[0].detach().numpy()
        assert keys.shape == (17, 16)
        similarities.append(np.array([[a @ b / np.linalg.norm(a) / np.linalg.norm(b) for b in keys] for a in keys]))
    found = measured(SOURCE, EDITED)
    np.testing.assert_allclose(found[0], np.mean((similarities[0] - similarities[1]) ** 2), rtol=1e-4)
    np.testing.assert_array_equal(measured(SOURCE, SOURCE), 0)


def test_missing_weights_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no DINO at .*; set edit.dino to a folder or a hub id"):
        StructureDistance(str(tmp_path / "none"))


def test_clip_sees_the_whole_and_the_edited_region_alone() -> None:
    def brightness(captions: list[str], pictures: list[Image.Image]) -> np.ndarray:
        assert captions == ["a", "b"]
        return np.array([np.asarray(picture).sum() for picture in pictures])

    found = measure(SOURCE, EDITED, ["a", "b"], MASKS, brightness)
    np.testing.assert_array_equal(found["clip_whole"], EDITED.astype(int).sum(axis=(1, 2, 3)))
    np.testing.assert_array_equal(found["clip_edited"], [EDITED[i][MASKS[i]].astype(int).sum() for i in range(2)])


def test_what_is_not_installed_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("softrepa_pipeline.evaluation.editing.measures.find_spec", lambda package: None)
    monkeypatch.setitem(sys.modules, "torchmetrics", None)
    found = measure(SOURCE, EDITED, ["a", "b"], MASKS)
    absent = {name for name, values in found.items() if values is None}
    assert absent == {"structure_distance", "background_ssim", "background_lpips", "clip_whole", "clip_edited"}
