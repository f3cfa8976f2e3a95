"""GenEval's rules on hand-made detections and against the embedded world's truth; its detector on tiny weights."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from transformers import (
    CLIPImageProcessorPil,
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    Mask2FormerImageProcessorPil,
    SwinConfig,
)

from softrepa_pipeline.evaluation.prompts import prompt_set
from softrepa_pipeline.evaluation.scorers import ScorerConfig, load_scorers
from softrepa_pipeline.evaluation.scorers.clip import Clip
from softrepa_pipeline.evaluation.scorers.geneval_detector import KINDS, ClipColors, Detector, detections, prepare
from softrepa_pipeline.evaluation.scorers.geneval_rules import (
    COLORS,
    Detection,
    Request,
    Verdict,
    Wanted,
    judge,
    relations_of,
    request_from_record,
)
from softrepa_pipeline.evaluation.scorers.weights import Source
from softrepa_pipeline.shapes.captions import draw_captioned
from softrepa_pipeline.shapes.claims import TASKS, Claim, is_true
from softrepa_pipeline.shapes.scene import Scene
from softrepa_pipeline.shapes.tiny_models import build_clip, build_tokenizer

PROMPTS = Path(__file__).parents[2] / "data/01_raw/prompts"


def seen(kind: str, confidence: float = 0.95, at: tuple[float, float] = (50, 50), side: float = 20) -> Detection:
    x, y = at
    return Detection(kind, confidence, (x - side / 2, y - side / 2, x + side / 2, y + side / 2))


def painted(**colors: str):
    """A namer of colours that knows one colour a kind."""
    return lambda kind, objects: [colors[kind]] * len(objects)


def verdict(record: dict, found: Sequence[Detection], **colors: str) -> Verdict:
    return judge(request_from_record(record), found, painted(**colors))


def test_single_object() -> None:
    record = {"tag": "single_object", "include": [{"class": "cow", "count": 1}]}
    assert verdict(record, [seen("cow"), seen("cow"), seen("dog")]).correct
    assert not verdict(record, [seen("dog")]).correct
    assert verdict(record, [seen("cow", 0.31)]).correct
    assert verdict(record, [seen("cow", 0.3)]).reasons == ("expected 1 cow, found 0",)


def test_two_object() -> None:
    record = {"tag": "two_object", "include": [{"class": "cow", "count": 1}, {"class": "tie", "count": 1}]}
    assert verdict(record, [seen("tie"), seen("cow")]).correct
    assert verdict(record, [seen("cow"), seen("cow")]).reasons == ("expected 1 tie, found 0",)


@pytest.mark.parametrize(("number", "unsure", "correct"), [(1, 0, False), (2, 3, True), (3, 0, False)])
def test_counting_is_exact_among_the_very_confident(number: int, unsure: int, correct: bool) -> None:
    record = {
        "tag": "counting",
        "include": [{"class": "clock", "count": 2}],
        "exclude": [{"class": "clock", "count": 3}],
    }
    found = [seen("clock", 0.91)] * number + [seen("clock", 0.9)] * unsure
    assert verdict(record, found).correct is correct


def test_colors_are_those_of_the_most_confident_object() -> None:
    record = {"tag": "colors", "include": [{"class": "car", "count": 1, "color": "red"}]}
    blue, red = seen("car", 0.9), seen("car", 0.8)

    def name(kind: str, objects: Sequence[Detection]) -> list[str]:
        return ["red" if item is red else "blue" for item in objects]

    assert judge(request_from_record(record), [red], name).correct
    assert judge(request_from_record(record), [red, blue], name).reasons == ("expected red car, found blue",)


def test_color_attribution() -> None:
    record = {
        "tag": "color_attr",
        "include": [{"class": "car", "count": 1, "color": "red"}, {"class": "cow", "count": 1, "color": "pink"}],
    }
    found = [seen("car"), seen("cow")]
    assert verdict(record, found, car="red", cow="pink").correct
    assert len(verdict(record, found, car="pink", cow="red").reasons) == 2


def test_position_is_that_of_the_second_object_seen_from_the_first() -> None:
    record = {
        "tag": "position",
        "include": [{"class": "cow", "count": 1}, {"class": "tie", "count": 1, "position": ["left of", 0]}],
    }
    cow = seen("cow", at=(100, 50))
    assert verdict(record, [cow, seen("tie", at=(40, 50))]).correct
    assert verdict(record, [cow, seen("tie", at=(160, 50))]).reasons == (
        "expected tie left of the other, found right of",
    )
    assert verdict(record, [seen("tie", at=(40, 50))]).reasons == (
        "expected 1 cow, found 0",
        "nothing for tie to be left of",
    )


@pytest.mark.parametrize(
    ("at", "relations"),
    [
        ((10, 0), {"right of"}),
        ((-10, 0), {"left of"}),
        ((0, -10), {"above"}),
        ((0, 10), {"below"}),
        ((3.9, 0), set()),  # two boxes of 20: the margin is 4
        ((8.1, 0), {"right of"}),  # (8.1 − 4) / 8.1 > 0.5
        ((7.9, 0), set()),
        ((100, 100), {"right of", "below"}),
        ((100, 50), {"right of"}),  # (50 − 4) / 112 < 0.5
    ],
)
def test_relations_by_centres_and_margin(at: tuple[float, float], relations: set[str]) -> None:
    assert relations_of(seen("a", at=at).box, seen("b", at=(0, 0)).box) == relations


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"tag": "texture", "include": []}, "`tag` must be one of single_object"),
        ({"tag": "counting", "include": []}, "names no object"),
        ({"tag": "counting", "include": [{"class": "cow", "count": 0}]}, "cow needs a `count`"),
        ({"tag": "colors", "include": [{"class": "cow", "count": 1, "color": "mauve"}]}, "mauve is none of red"),
        ({"tag": "position", "include": [{"class": "cow", "count": 1, "position": ["near", 0]}]}, "near is none of"),
        (
            {"tag": "position", "include": [{"class": "cow", "count": 1, "position": ["above", 0]}]},
            "must refer to an object before it",
        ),
    ],
)
def test_a_bad_record_says_what_is_wrong(record: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        request_from_record(record)


def request_of(claim: Claim) -> Request:
    """A claim of the embedded world in GenEval's terms."""
    task = "color_attr" if claim.task == "color_attribution" else claim.task
    if claim.relation:
        first, second = claim.objects
        target = Wanted(second.shape, color=second.color)
        return Request(task, (target, Wanted(first.shape, 1, first.color, claim.relation, 0)))
    include = tuple(Wanted(item.shape, claim.count or 1, item.color) for item in claim.objects)
    return Request(task, include, (Wanted(claim.objects[0].shape, claim.count + 1),) if claim.count else ())


def judged(claim: Claim, scene: Scene) -> bool:
    boxes = {(t.x - t.extent / 2, t.y - t.extent / 2, t.x + t.extent / 2, t.y + t.extent / 2): t for t in scene.things}
    found = [Detection(thing.shape, 1.0, box) for box, thing in boxes.items()]
    return judge(request_of(claim), found, lambda _, objects: [boxes[item.box].color for item in objects]).correct


def test_rules_agree_with_the_embedded_worlds_truth() -> None:
    """With perfect detections the rules accept nothing false, and miss only what they are stricter about."""
    rng = np.random.default_rng(0)
    items = [draw_captioned("train", 0.0, rng, task) for task in TASKS for _ in range(50)]
    items = [item for item in items if not item.claim.background and not any(o.size for o in item.claim.objects)]
    counts: dict[str, Counter] = {task: Counter() for task in TASKS}
    for place, item in enumerate(items):
        for other in (place, *rng.integers(len(items), size=3)):
            claim = items[int(other)].claim
            truth = is_true(claim, item.scene.things, item.scene.background)
            counts[claim.task][truth, judged(claim, item.scene)] += 1
    assert sum(count[False, True] for count in counts.values()) == 0
    for task in ("single_object", "two_object", "counting", "color_attribution"):
        assert counts[task][True, False] == 0
        assert min(counts[task][True, True], counts[task][False, False]) > 5
    # Colours: only the first of several objects of a kind is looked at. Position: a slant of more than 60° is refused.
    assert counts["colors"][True, False] < 0.03 * counts["colors"].total()
    assert counts["position"][True, False] < 0.15 * counts["position"].total()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random Mask2Former of COCO's kinds, with a tiny CLIP beside it."""
    folder = tmp_path_factory.mktemp("geneval")
    torch.manual_seed(0)
    backbone = SwinConfig(
        image_size=32,
        embed_dim=8,
        depths=[1, 1, 1, 1],
        num_heads=[1, 1, 1, 1],
        window_size=4,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    config = Mask2FormerConfig(
        backbone_config=backbone,
        feature_size=32,
        mask_feature_size=32,
        hidden_dim=32,
        encoder_feedforward_dim=16,
        dim_feedforward=16,
        encoder_layers=1,
        decoder_layers=2,
        num_attention_heads=2,
        num_queries=5,
        id2label={i: str(i) for i in range(80)},
    )
    Mask2FormerForUniversalSegmentation(config).save_pretrained(folder)
    tokenizer = build_tokenizer([f"a photo of a {color} colored object" for color in COLORS])
    build_clip(tokenizer).save_pretrained(folder / "clip")
    tokenizer.save_pretrained(folder / "clip")
    CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(
        folder / "clip"
    )
    return folder


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def test_pixels_are_resized_normalised_and_padded() -> None:
    pixels, inner = prepare(picture(64, 48))
    assert inner == (800, 1067)
    assert pixels.shape == (3, 800, 1088)
    assert pixels[:, :, 1067:].eq(0).all()
    wide, inner = prepare(picture(300, 30))
    assert inner == (133, 1333)
    assert wide.shape == (3, 160, 1344)
    white, _ = prepare(Image.new("RGB", (32, 32), "white"))
    expected = [(1 - 0.485) / 0.229, (1 - 0.456) / 0.224, (1 - 0.406) / 0.225]
    assert white[:, 0, 0].tolist() == pytest.approx(expected, rel=1e-5)


def test_pixels_are_those_of_the_models_own_processor() -> None:
    processor = Mask2FormerImageProcessorPil(size={"shortest_edge": 800, "longest_edge": 1333}, size_divisor=32)
    image = picture(48, 48, seed=3)  # of other shapes it squeezes what we pad
    expected = processor(images=image, return_tensors="pt").pixel_values[0]
    pixels, inner = prepare(image)
    assert inner == (800, 800)
    torch.testing.assert_close(pixels, expected, atol=1e-4, rtol=0)


@torch.no_grad()
def test_what_is_detected_lies_where_the_masks_do(folder: Path) -> None:
    detector = Detector(Source(str(folder)), "cpu")
    detector.model.class_predictor.weight.mul_(40)  # fresh weights are sure of nothing
    image = picture(64, 48)
    found = detector.detect(image)
    pixels, (height, width) = prepare(image)
    output = detector.model(pixel_values=pixels[None])
    masks = F.interpolate(output.masks_queries_logits, size=pixels.shape[1:], mode="bilinear")[0]
    expected = []
    for query, logits in enumerate(output.class_queries_logits[0].softmax(dim=-1)):
        mask = F.interpolate(masks[None, query : query + 1, :height, :width], size=(48, 64), mode="bilinear")[0, 0]
        inside = (mask > 0).numpy()
        confidence = float(logits[:80].max()) * float(mask[mask > 0].sigmoid().mean()) if inside.any() else 0.0
        if confidence > 0.3:
            expected.append((KINDS[int(logits[:80].argmax())], pytest.approx(confidence, rel=1e-4), inside.sum()))
    assert len(expected) >= 1
    assert sorted((item.kind, item.confidence, item.mask.sum()) for item in found) == sorted(
        expected, key=lambda item: (item[0], item[2])
    )


def test_detections_equal_a_plain_loop_over_queries_and_kinds() -> None:
    generator = torch.Generator().manual_seed(0)
    classes = torch.randn(6, 81, generator=generator) * 4
    masks = torch.randn(6, 9, 12, generator=generator) + 0.5
    masks[2] = -1.0  # a query that shows nothing
    expected = {}
    for query, logits in enumerate(classes):
        probabilities = np.exp(logits.double().numpy()) / np.exp(logits.double().numpy()).sum()
        for kind in range(80):
            values = [1 / (1 + np.exp(-v)) for v in masks[query].flatten().tolist() if v > 0]
            confidence = probabilities[kind] * np.mean(values) if values else 0
            if confidence > 0.3:
                rows, columns = np.nonzero(masks[query].numpy() > 0)
                box = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
                expected[KINDS[kind], tuple(map(float, box))] = confidence
    found = {(item.kind, item.box): item.confidence for item in detections(classes, masks)}
    assert len(expected) >= 2
    assert found == pytest.approx(expected, rel=1e-5)


def test_kinds_are_cocos_and_cover_all_of_genevals_prompts() -> None:
    assert len(set(KINDS)) == 80
    requests = [prompt.truth for prompt in prompt_set("geneval", PROMPTS)]
    assert {item.kind for request in requests for item in (*request.include, *request.exclude)} <= set(KINDS)


@torch.no_grad()
def test_colors_are_the_nearest_by_clip_on_a_cut_out(folder: Path) -> None:
    clip = Clip(Source(str(folder / "clip")), "cpu")
    image = picture(60, 40)
    mask = np.zeros((40, 60), dtype=bool)
    mask[10:30, 20:50] = True
    mask[10:14, 20:24] = False
    found = Detection("car", 0.9, (20, 10, 50, 30), mask)
    pixels = np.array(image)
    pixels[~mask] = 0x99
    feature = clip.images([Image.fromarray(pixels[10:30, 20:50])])[0]
    best = {}
    for color in COLORS:
        wordings = [f"a photo of a {color} car", f"a photo of a {color}-colored car", f"a photo of a {color} object"]
        mean = clip.texts(wordings).mean(dim=0)
        best[color] = float(feature @ mean / mean.norm())
    whole = Detection("car", 0.9, (0, 0, 60, 40))
    names = ClipColors(clip).name(image, "car", [found, whole])
    assert names[0] == max(best, key=best.__getitem__)
    assert len(names) == 2


def test_geneval_scores_by_its_own_prompts(folder: Path) -> None:
    requests = {prompt.text: prompt.truth for prompt in prompt_set("geneval", PROMPTS)}
    scorer = load_scorers([ScorerConfig("geneval", str(folder))], requests)["geneval"]
    assert scorer.score(["a photo of a bench"], [picture(40, 30)]).tolist() == [0.0]
    with pytest.raises(ValueError, match="a photo of a dream"):
        scorer.score(["a photo of a dream"], [picture(40, 30)])


def test_a_detector_of_other_kinds_is_refused(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "other")
    config = Mask2FormerConfig.from_pretrained(folder)
    config.id2label = {0: "cell"}
    model = Mask2FormerForUniversalSegmentation(config)
    model.save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match="knows 1 kinds; GenEval needs COCO's 80"):
        load_scorers([ScorerConfig("geneval", str(tmp_path / "other"))], {})
