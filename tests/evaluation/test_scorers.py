"""Each scorer's arithmetic against an independent computation on tiny random weights; what happens without weights."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from evaluation.reference_models import ImageRewardModel, OpenClip, RewardMlp
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor
from transformers import BertTokenizer, CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPTextConfig, CLIPVisionConfig

from softrepa_pipeline.evaluation.scorers import NotMeasured, ScorerConfig, load_scorers, score_images
from softrepa_pipeline.evaluation.scorers.hps import HpsV21, from_open_clip
from softrepa_pipeline.evaluation.scorers.image_reward import REWARD_MEAN, REWARD_STD
from softrepa_pipeline.evaluation.scorers.weights import read_tensors
from softrepa_pipeline.shapes.dataset import read_images
from softrepa_pipeline.shapes.tiny_models import build_clip, build_tokenizer

PROMPTS = ["a red circle", "two blue squares", "a green triangle"]
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
SIDE = 32


@pytest.fixture(scope="module")
def images() -> list[Image.Image]:
    rng = np.random.default_rng(0)
    sizes = [(40, 32), (32, 32), (50, 90)]
    return [Image.fromarray(rng.integers(0, 256, (h, w, 3), dtype=np.uint8)) for w, h in sizes]


def write_processors(folder: Path) -> None:
    build_tokenizer(PROMPTS).save_pretrained(folder)
    CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}).save_pretrained(
        folder
    )


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clip")
    torch.manual_seed(0)
    model = build_clip(build_tokenizer(PROMPTS))
    model.logit_scale.data.fill_(3.5)
    model.save_pretrained(folder)
    write_processors(folder)
    return folder


def crop(image: Image.Image) -> Tensor:
    """The shorter side to 32 pixels, the middle cut out, CLIP's normalisation: (3, 32, 32)."""
    scale = SIDE / min(image.size)
    width, height = (max(SIDE, int(extent * scale)) for extent in image.size)
    left, top = (width - SIDE) // 2, (height - SIDE) // 2
    resized = image.resize((width, height), Image.Resampling.BICUBIC).crop((left, top, left + SIDE, top + SIDE))
    return normalised(resized)


def normalised(image: Image.Image) -> Tensor:
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255
    return (pixels - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]


@torch.no_grad()
def embeddings(folder: Path, images: list[Image.Image]) -> tuple[Tensor, Tensor]:
    """Unit embeddings of images and of PROMPTS, each prompt alone and unpadded, from the towers and projections."""
    model = CLIPModel.from_pretrained(folder, dtype=torch.float32).eval()
    seen = model.vision_model(torch.stack([crop(image) for image in images])).last_hidden_state[:, 0]
    visual = model.vision_model.post_layernorm(seen) @ model.visual_projection.weight.T
    tokenizer = build_tokenizer(PROMPTS)
    states = [
        model.text_model(torch.tensor([tokenizer(prompt).input_ids])).last_hidden_state[0, -1] for prompt in PROMPTS
    ]
    textual = torch.stack(states) @ model.text_projection.weight.T
    return tuple(features / features.norm(dim=-1, keepdim=True) for features in (visual, textual))


def scores_of(name: str, folder: Path, images: list[Image.Image], batch_size: int = 2) -> np.ndarray:
    scorers = load_scorers([ScorerConfig(name, str(folder), batch_size=batch_size)], {})
    result = score_images(scorers, PROMPTS, images)[name]
    assert not isinstance(result, NotMeasured), result
    assert result.model == str(folder)
    assert result.seconds_per_image > 0
    assert result.values.shape == (3,)
    return result.values


def test_clip_score_is_a_hundred_times_the_positive_cosine(clip_folder: Path, images: list[Image.Image]) -> None:
    visual, textual = embeddings(clip_folder, images)
    cosine = (visual * textual).sum(dim=-1).numpy()
    np.testing.assert_allclose(scores_of("clip_score", clip_folder, images), 100 * np.maximum(cosine, 0), atol=1e-4)


def test_pick_score_is_the_logit(clip_folder: Path, images: list[Image.Image]) -> None:
    visual, textual = embeddings(clip_folder, images)
    expected = np.exp(3.5) * (visual * textual).sum(dim=-1).numpy()
    np.testing.assert_allclose(scores_of("pick_score", clip_folder, images), expected, atol=1e-4)
    assert np.abs(expected).max() > 0.1


def test_scores_do_not_depend_on_the_batch(clip_folder: Path, images: list[Image.Image]) -> None:
    alone, together = (scores_of("pick_score", clip_folder, images, size) for size in (1, 3))
    np.testing.assert_allclose(alone, together, atol=1e-5)


@pytest.fixture(scope="module")
def open_clip() -> OpenClip:
    torch.manual_seed(1)
    vocabulary = len(build_tokenizer(PROMPTS))
    return OpenClip(vocabulary, length=20, side=SIDE, patch=8, width=32, heads=2, layers=3).eval()


@pytest.fixture(scope="module")
def hps_folder(tmp_path_factory: pytest.TempPathFactory, open_clip: OpenClip) -> Path:
    folder = tmp_path_factory.mktemp("hps")
    tokenizer = build_tokenizer(PROMPTS)
    tower = {"hidden_size": 32, "intermediate_size": 128, "num_hidden_layers": 3, "num_attention_heads": 2}
    text = CLIPTextConfig(
        **tower,
        vocab_size=len(tokenizer),
        max_position_embeddings=20,
        hidden_act="gelu",
        eos_token_id=tokenizer.eos_token_id,
    )
    vision = CLIPVisionConfig(**tower, image_size=SIDE, patch_size=8, hidden_act="gelu")
    CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=24).save_pretrained(folder)
    write_processors(folder)
    torch.save({"epoch": 1, "state_dict": open_clip.state_dict()}, folder / "HPS_v2.1_compressed.pt")
    return folder


@torch.no_grad()
def test_hps_equals_open_clip_in_every_layer(hps_folder: Path, open_clip: OpenClip) -> None:
    ours = HpsV21(ScorerConfig("hps_v2_1", str(hps_folder))).clip.model
    pixels = torch.randn(2, 3, SIDE, SIDE)
    feature, states = open_clip.visual(pixels)
    seen = ours.vision_model(pixels, output_hidden_states=True).hidden_states
    for layer, (state, expected) in enumerate(zip(seen, states, strict=True)):
        torch.testing.assert_close(state, expected, atol=1e-5, rtol=1e-4, msg=f"vision layer {layer}")
    torch.testing.assert_close(ours.get_image_features(pixels).pooler_output, feature, atol=1e-5, rtol=1e-4)

    tokenizer = build_tokenizer(PROMPTS)
    tokens = tokenizer(PROMPTS, padding="max_length", max_length=20, return_tensors="pt").input_ids
    feature, states = open_clip.encode_text(tokens, tokenizer.eos_token_id)
    read = ours.text_model(tokens, output_hidden_states=True).hidden_states
    for layer, (state, expected) in enumerate(zip(read, states, strict=True)):
        torch.testing.assert_close(state, expected, atol=1e-5, rtol=1e-4, msg=f"text layer {layer}")
    torch.testing.assert_close(ours.get_text_features(tokens).pooler_output, feature, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_hps_scores_letterboxed_images(hps_folder: Path, open_clip: OpenClip, images: list[Image.Image]) -> None:
    boxed = []
    for image, (size, corner) in zip(images, [((32, 26), (0, 3)), ((32, 32), (0, 0)), ((18, 32), (7, 0))], strict=True):
        square = np.zeros((SIDE, SIDE, 3), dtype=np.uint8)
        resized = np.array(image.resize(size, Image.Resampling.BICUBIC))
        square[corner[1] : corner[1] + size[1], corner[0] : corner[0] + size[0]] = resized
        boxed.append(normalised(Image.fromarray(square)))
    tokenizer = build_tokenizer(PROMPTS)
    tokens = tokenizer(PROMPTS, padding="max_length", max_length=20, return_tensors="pt").input_ids
    visual, _ = open_clip.visual(torch.stack(boxed))
    textual, _ = open_clip.encode_text(tokens, tokenizer.eos_token_id)
    expected = F.cosine_similarity(visual, textual).numpy()
    np.testing.assert_allclose(scores_of("hps_v2_1", hps_folder, images), expected, atol=1e-5)


def test_a_tensor_that_is_not_open_clips_is_named() -> None:
    with pytest.raises(ValueError, match=r"visual\.score_predictor\.weight is no tensor of an open_clip CLIP"):
        from_open_clip({"visual.score_predictor.weight": torch.zeros(1)})


BERT_WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "circle", "two", "blue", "squares", "green"]


@pytest.fixture(scope="module")
def image_reward(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ImageRewardModel]:
    folder = tmp_path_factory.mktemp("image_reward")
    torch.manual_seed(2)
    model = ImageRewardModel(len(BERT_WORDS)).eval()
    eyes = model.blip["visual_encoder"]
    for parameter in (eyes.cls_token, eyes.pos_embed, *eyes.patch_embed.parameters()):
        parameter.data.mul_(0.01)  # so small that the layer norms' epsilon shows
    for parameter in model.mlp.parameters():
        parameter.data.mul_(3)  # five linear layers at their usual start would all but cancel the input
    state = {**model.state_dict(), "blip.text_encoder.embeddings.position_ids": torch.arange(64)[None]}
    torch.save(state, folder / "ImageReward.pt")
    settings = {
        "architectures": ["BertModel"],
        "vocab_size": len(BERT_WORDS),
        "hidden_size": 48,
        "intermediate_size": 96,
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "max_position_embeddings": 64,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-12,
        "encoder_width": 768,
        "add_cross_attention": True,
    }
    (folder / "med_config.json").write_text(json.dumps(settings))
    BertTokenizer(vocab={word: i for i, word in enumerate(BERT_WORDS)}).save_pretrained(folder)
    return folder, model


@torch.no_grad()
def test_image_reward_equals_blip_and_its_head(
    image_reward: tuple[Path, ImageRewardModel], images: list[Image.Image]
) -> None:
    folder, model = image_reward
    numbers = {word: i for i, word in enumerate(BERT_WORDS)}
    expected = []
    for prompt, image in zip(PROMPTS, images, strict=True):
        words = ["[CLS]", *(word if word in numbers else "[UNK]" for word in prompt.split()), "[SEP]"]
        tokens = torch.tensor([[numbers[word] for word in words]])
        seen = model.blip["visual_encoder"](crop(image)[None])
        read = model.blip["text_encoder"](tokens, torch.ones_like(tokens, dtype=torch.bool), seen)
        expected.append((model.mlp(read[:, 0]).item() - REWARD_MEAN) / REWARD_STD)
    np.testing.assert_allclose(scores_of("image_reward", folder, images), expected, atol=1e-4)
    assert np.std(expected) > 1e-3


@torch.no_grad()
def test_aesthetic_is_the_head_on_a_unit_embedding(
    clip_folder: Path, images: list[Image.Image], tmp_path: Path
) -> None:
    torch.manual_seed(3)
    head = RewardMlp(128).eval()
    for file in clip_folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    torch.save(head.state_dict(), tmp_path / "sac+logos+ava1-l14-linearMSE.pth")
    visual, _ = embeddings(clip_folder, images)
    np.testing.assert_allclose(scores_of("aesthetic", tmp_path, images), head(visual)[:, 0].numpy(), atol=1e-5)


def test_the_verifier_scores_the_worlds_own_images_right(world: Path) -> None:
    truth, prompts = read_images(world, "test", 24)
    claims = {prompt.text: prompt.claim for prompt in prompts}
    scorers = load_scorers([ScorerConfig("verifier")], claims)
    pictures = [Image.fromarray(image) for image in truth]
    texts = [prompt.text for prompt in prompts]
    right = score_images(scorers, texts, pictures)["verifier"]
    wrong = score_images(scorers, texts, pictures[1:] + pictures[:1])["verifier"]
    assert right.values.mean() > 0.95
    assert wrong.values.mean() < 0.6
    with pytest.raises(ValueError, match="a photograph"):
        score_images(scorers, ["a photograph"], pictures[:1])


def test_missing_weights_are_marked_and_the_others_go_on(
    clip_folder: Path, images: list[Image.Image], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    configs = [
        ScorerConfig("image_reward", str(tmp_path / "nowhere")),
        ScorerConfig("pick_score", "someone/not-in-the-cache"),
        ScorerConfig("aesthetic"),
        ScorerConfig("clip_score", str(clip_folder)),
    ]
    results = score_images(load_scorers(configs, {}), PROMPTS, images)
    for name, pattern in [
        ("image_reward", r"nowhere.*put its files there.*docs/metrics\.md"),
        ("pick_score", r"someone/not-in-the-cache@main.*set the scorer's `model` to it"),
        ("aesthetic", r"on no hub.*set its `model`"),
    ]:
        assert isinstance(results[name], NotMeasured)
        assert re.search(pattern, results[name].reason), results[name].reason
    assert results["clip_score"].values.shape == (3,)


def test_an_unknown_scorer_names_the_nearest() -> None:
    with pytest.raises(ValueError, match="unknown scorer 'clipscore'; did you mean clip_score"):
        load_scorers([ScorerConfig("clipscore")], {})


def test_prompts_and_images_must_pair_up(clip_folder: Path, images: list[Image.Image]) -> None:
    scorer = load_scorers([ScorerConfig("clip_score", str(clip_folder))], {})["clip_score"]
    with pytest.raises(ValueError, match="2 prompts for 3 images"):
        scorer.score(PROMPTS[:2], images)


@pytest.mark.parametrize("name", ["cut.pt", "cut.safetensors"])
def test_a_damaged_checkpoint_is_named(tmp_path: Path, name: str) -> None:
    save = save_file if name.endswith("safetensors") else torch.save
    save({"weight": torch.zeros(1000)}, tmp_path / name)
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:900])
    with pytest.raises(ValueError, match=f"{name} is damaged"):
        read_tensors(tmp_path / name)


class _Trap:
    def __reduce__(self) -> tuple:
        return (Path("/tmp/should-never-be-made").touch, ())


def test_a_checkpoint_with_code_in_it_is_refused(tmp_path: Path) -> None:
    torch.save({"state_dict": {"weight": torch.zeros(1)}, "trap": _Trap()}, tmp_path / "bad.pt")
    with pytest.raises(ValueError, match=r"bad\.pt is damaged or holds more than tensors"):
        read_tensors(tmp_path / "bad.pt")
    assert not Path("/tmp/should-never-be-made").exists()
