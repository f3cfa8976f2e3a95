"""Distances of sets against closed forms and plain loops; features and LPIPS on tiny or random weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import linalg
from torch import nn
from transformers import CLIPImageProcessorPil, Dinov2Config, Dinov2Model

from softrepa_pipeline.evaluation.benchmark import Prompts
from softrepa_pipeline.evaluation.measures import Measures
from softrepa_pipeline.evaluation.prompts import TaskPrompt
from softrepa_pipeline.evaluation.scorers import NotMeasured, ScorerConfig
from softrepa_pipeline.evaluation.scorers.verifier import WorldVerifier
from softrepa_pipeline.evaluation.sets import Lpips, SetMeasure, load_set_measure
from softrepa_pipeline.evaluation.sets.distances import clip_distance, frechet, frechet_distance, kernel_distance
from softrepa_pipeline.shapes.tiny_models import build_clip, build_tokenizer

RNG = np.random.default_rng(0)


def pictures(count: int, seed: int = 0, side: int = 40) -> list[Image.Image]:
    rng = np.random.default_rng(seed)
    return [Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8)) for _ in range(count)]


def test_a_set_has_no_distance_from_itself() -> None:
    features = RNG.normal(size=(60, 80))  # fewer images than dimensions: a singular covariance
    assert frechet(features, features) == pytest.approx(0, abs=1e-8)
    assert clip_distance(features, features) == pytest.approx(0, abs=1e-8)


def test_a_shifted_set_is_its_shift_away() -> None:
    features, shift = RNG.normal(size=(500, 12)), RNG.normal(size=12)
    assert frechet(features, features + shift) == pytest.approx((shift**2).sum(), rel=1e-9)


def test_frechet_equals_the_closed_form_of_gaussians() -> None:
    # Axes scaled apart: Σ (√a − √b)² over the axes, whatever the common rotation.
    rotation, _ = np.linalg.qr(RNG.normal(size=(6, 6)))
    first, second, mean = RNG.uniform(0.1, 3, 6), RNG.uniform(0.1, 3, 6), RNG.normal(size=6)
    covariances = [(rotation * values) @ rotation.T for values in (first, second)]
    expected = (mean**2).sum() + ((np.sqrt(first) - np.sqrt(second)) ** 2).sum()
    assert frechet_distance(np.zeros(6), covariances[0], mean, covariances[1]) == pytest.approx(expected, rel=1e-10)


def test_frechet_equals_the_matrix_root_where_axes_differ() -> None:
    first, second = RNG.normal(size=(200, 5)) @ RNG.normal(size=(5, 5)), RNG.normal(size=(300, 5)) + 1
    covariances = [np.cov(features.T) for features in (first, second)]
    root = linalg.sqrtm(covariances[0] @ covariances[1]).real
    expected = ((first.mean(0) - second.mean(0)) ** 2).sum() + np.trace(covariances[0] + covariances[1] - 2 * root)
    assert frechet(first, second) == pytest.approx(expected, rel=1e-8)


def test_kid_equals_a_plain_loop() -> None:
    x, y = RNG.normal(size=(9, 4)), RNG.normal(size=(9, 4)) + 0.5

    def kernel(a: np.ndarray, b: np.ndarray) -> float:
        return (sum(p * q for p, q in zip(a, b, strict=True)) / 4 + 1) ** 3

    def within(z: np.ndarray) -> float:
        return np.mean([kernel(z[i], z[j]) for i in range(9) for j in range(9) if i != j])

    expected = within(x) + within(y) - 2 * np.mean([kernel(a, b) for a in x for b in y])
    assert kernel_distance(x, y) == pytest.approx(expected, rel=1e-10)


def test_kid_over_subsets_is_near_that_of_the_whole_and_the_same_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = RNG.normal(size=(300, 4)), RNG.normal(size=(300, 4)) + 0.5
    whole = kernel_distance(x, y)
    monkeypatch.setattr("softrepa_pipeline.evaluation.sets.distances.KID_SUBSET_SIZE", 100)
    assert kernel_distance(x, y) == kernel_distance(x, y) == pytest.approx(whole, rel=0.05)


def test_cmmd_equals_a_plain_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("softrepa_pipeline.evaluation.sets.distances._ROWS", 3)
    x, y = RNG.normal(size=(7, 4)) * 5, RNG.normal(size=(5, 4)) * 5 + 3

    def mean(a: np.ndarray, b: np.ndarray) -> float:
        return np.mean([np.exp(-((p - q) ** 2).sum() / (2 * 10**2)) for p in a for q in b])

    assert clip_distance(x, y) == pytest.approx(1000 * (mean(x, x) + mean(y, y) - 2 * mean(x, y)), rel=1e-9)


@torch.no_grad()
def test_fd_dinov2_on_tiny_weights(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = Dinov2Config(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=224, patch_size=56)
    Dinov2Model(config).save_pretrained(tmp_path)
    measure = load_set_measure(ScorerConfig("fd_dinov2", str(tmp_path), batch_size=3))
    assert isinstance(measure, SetMeasure)
    real = pictures(6)
    model = Dinov2Model.from_pretrained(tmp_path).eval()
    squeezed = [np.array(image.resize((224, 224), Image.Resampling.BICUBIC)) for image in real]
    pixels = torch.tensor(np.stack(squeezed)).permute(0, 3, 1, 2) / 255
    for channel, (mean, deviation) in enumerate([(0.485, 0.229), (0.456, 0.224), (0.406, 0.225)]):
        pixels[:, channel] = (pixels[:, channel] - mean) / deviation
    expected = model.layernorm(model.encoder(model.embeddings(pixels)).last_hidden_state)[:, 0]
    np.testing.assert_allclose(measure.extractor.features(real), expected.numpy(), atol=1e-5)
    assert measure.measure(real, real) == pytest.approx(0, abs=1e-6)
    assert measure.measure(real, pictures(5, seed=1)) > 0
    with pytest.raises(ValueError, match="sets of 6 and 1 images are too small"):
        measure.measure(real, real[:1])


def test_cmmd_is_small_within_a_kind_of_image_and_large_between_two(tmp_path: Path) -> None:
    torch.manual_seed(0)
    tokenizer = build_tokenizer(["a red circle"])
    build_clip(tokenizer).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(tmp_path)
    measure = load_set_measure(ScorerConfig("cmmd", str(tmp_path)))
    assert isinstance(measure, SetMeasure)
    noise, more = pictures(12), pictures(12, seed=1)
    flat = [Image.new("RGB", (40, 40), (20 * i, 100, 50)) for i in range(12)]
    assert measure.measure(noise, more) < measure.measure(noise, flat) / 10


def test_set_measures_without_weights_or_of_no_known_name(tmp_path: Path) -> None:
    missing = load_set_measure(ScorerConfig("cmmd", str(tmp_path / "none")))
    assert isinstance(missing, NotMeasured)
    assert "put its files there" in missing.reason
    with pytest.raises(ValueError, match=r"unknown set measure 'fid'\. Known: fd_dinov2, kid_dinov2, cmmd, lpips"):
        load_set_measure(ScorerConfig("fid"))


class ReferenceLpips(nn.Module):
    """LPIPS with AlexNet as its paper defines it, state by state."""

    def __init__(self) -> None:
        super().__init__()
        self.convolutions = nn.ModuleDict(
            {
                "0": nn.Conv2d(3, 64, 11, 4, 2),
                "3": nn.Conv2d(64, 192, 5, 1, 2),
                "6": nn.Conv2d(192, 384, 3, 1, 1),
                "8": nn.Conv2d(384, 256, 3, 1, 1),
                "10": nn.Conv2d(256, 256, 3, 1, 1),
            }
        )
        self.weights = [torch.rand(1, width, 1, 1) for width in (64, 192, 384, 256, 256)]

    def states(self, image: Image.Image) -> list[np.ndarray]:
        x = torch.tensor(np.array(image)).permute(2, 0, 1)[None] / 255 * 2 - 1
        x = (x - torch.tensor([-0.030, -0.088, -0.188])[:, None, None]) / torch.tensor([0.458, 0.448, 0.450])[
            :, None, None
        ]
        states = []
        for name, convolution in self.convolutions.items():
            x = convolution(nn.functional.max_pool2d(x, 3, 2) if name in ("3", "6") else x).relu()
            states.append(x[0].numpy())
        return states

    def distance(self, first: Image.Image, second: Image.Image) -> float:
        total = 0.0
        for a, b, weight in zip(self.states(first), self.states(second), self.weights, strict=True):
            unit = [state / (np.sqrt((state**2).sum(axis=0)) + 1e-10) for state in (a, b)]
            total += (weight[0].numpy() * (unit[0] - unit[1]) ** 2).sum(axis=0).mean()
        return total


@torch.no_grad()
def test_lpips_equals_its_definition(tmp_path: Path) -> None:
    torch.manual_seed(0)
    reference = ReferenceLpips()
    alexnet = {f"features.{name}": value for name, value in reference.convolutions.state_dict().items()}
    torch.save({**alexnet, "classifier.1.weight": torch.zeros(2, 2)}, tmp_path / "alexnet-owt-7be5be79.pth")
    torch.save({f"lin{i}.model.1.weight": w for i, w in enumerate(reference.weights)}, tmp_path / "alex.pth")
    lpips = Lpips(ScorerConfig("lpips", str(tmp_path)))
    a, b, c = pictures(3, side=64)
    assert lpips.distance(a, b) == pytest.approx(reference.distance(a, b), rel=1e-5)
    assert lpips.distance(a, a) == 0
    expected = np.mean([reference.distance(*pair) for pair in ((a, b), (a, c), (b, c))])
    assert lpips.diversity([a, b, c]) == pytest.approx(expected, rel=1e-5)
    with pytest.raises(ValueError, match="one size"):
        lpips.distance(a, a.resize((32, 32)))

    diversity = load_set_measure(ScorerConfig("lpips_diversity", str(tmp_path)))
    measures = Measures({"verifier": WorldVerifier(ScorerConfig("verifier"), {})}, {"lpips_diversity": diversity})
    prompts = Prompts([TaskPrompt("x", "t"), TaskPrompt("y", "t")])
    drawn = np.stack([np.stack([np.asarray(a), np.asarray(b)]), np.stack([np.asarray(c), np.asarray(c)])])
    assert measures.distances(prompts, drawn)["lpips_diversity"] == pytest.approx(
        reference.distance(a, b) / 2, rel=1e-5
    )
    assert "several images a prompt" in measures.distances(prompts, drawn[:, :1])["lpips_diversity"].reason
