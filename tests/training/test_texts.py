"""Text states that are kept: the training is the one that encodes in every step, and each caption is encoded once."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusion3Pipeline
from encoder_work import outputs
from training_settings import BATCH, CONFIG
from transformers import T5Config, T5EncoderModel, T5TokenizerFast

from softrepa_pipeline.backbones import Backbone, ModelConfig, load_backbone
from softrepa_pipeline.caches import stores_under
from softrepa_pipeline.soft_tokens import load_soft_tokens
from softrepa_pipeline.training import ExecutionConfig, FitConfig, Job, TextCache, TrainingSet, launch
from softrepa_pipeline.training.distributed import Group
from softrepa_pipeline.training.texts import are_kept, encode, keep_texts, row_bytes, text_store

CAPTIONS = [f"{number} red circles left of a blue square" for number in range(70)]


@pytest.fixture(scope="module")
def t5_folder(model_folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny random SD3 with a T5, which adds 24 tokens to a caption."""
    torch.manual_seed(0)
    pipeline = StableDiffusion3Pipeline.from_pretrained(
        str(model_folders["sd3"]), text_encoder_3=None, tokenizer_3=None
    )
    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    vocabulary += [(letter, -3.0) for letter in "abcdefghijklmnopqrstuvwxyz0123456789"]
    width = pipeline.transformer.config.joint_attention_dim
    t5 = T5EncoderModel(T5Config(vocab_size=64, d_model=width, d_kv=16, d_ff=64, num_layers=1, num_heads=2))
    pipeline.register_modules(text_encoder_3=t5, tokenizer_3=T5TokenizerFast(vocab=vocabulary, extra_ids=0))
    folder = tmp_path_factory.mktemp("models") / "sd3_t5"
    pipeline.save_pretrained(folder)
    return folder


@pytest.fixture
def t5_job(job: Job, t5_folder: Path) -> Job:
    return replace(job, model=ModelConfig("sd3", str(t5_folder), max_sequence_length=24))


def keep(backbone: Backbone, folder: Path, captions: list[str] = CAPTIONS, max_gb: float | None = None) -> object:
    model = ModelConfig(backbone.family, str(folder / "none"), max_sequence_length=0)
    return keep_texts(backbone, model, captions, TextCache(str(folder / "texts"), max_gb), Group())


def run(job: Job, folder: Path, *, text_cache: bool | None = None, num_processes: int = 1) -> dict[str, torch.Tensor]:
    execution = replace(job.execution, text_cache=text_cache, num_processes=num_processes)
    launched = replace(job, folder=str(folder / "run"), execution=execution, texts=TextCache(str(folder / "texts")))
    launch(launched)
    return load_soft_tokens(launched.tokens_file)[0].state_dict()


def test_states_are_those_that_the_backbone_gives(backbone: Backbone, tmp_path: Path) -> None:
    texts = keep(backbone, tmp_path)
    wanted = [CAPTIONS[place] for place in (69, 3, 3, 31, 32)]
    found, expected = texts.of(wanted, backbone.device), encode(backbone, wanted)  # type: ignore[attr-defined]
    torch.testing.assert_close(found.states, expected.states, rtol=0, atol=1e-5)
    assert (found.pooled is None) == (expected.pooled is None)
    if expected.pooled is not None:
        torch.testing.assert_close(found.pooled, expected.pooled, rtol=0, atol=1e-5)


@pytest.mark.parametrize("fit", [CONFIG, replace(BATCH, held_out_images=1, mined_share=(0.0, 0.5))])
def test_a_training_with_kept_states_is_the_one_without(t5_job: Job, tmp_path: Path, fit: FitConfig) -> None:
    job = replace(t5_job, fit=fit)
    without, kept = run(job, tmp_path / "without", text_cache=False), run(job, tmp_path / "kept")
    assert not (tmp_path / "without/texts").exists()
    for name, value in without.items():
        assert torch.equal(kept[name], value), name
    # A second training encodes nothing, and has the same bits.
    before = outputs(tmp_path / "kept/texts")
    shutil.rmtree(tmp_path / "kept/run")
    again = run(job, tmp_path / "kept")
    assert outputs(tmp_path / "kept/texts") == before
    assert all(torch.equal(again[name], value) for name, value in kept.items())


def test_processes_encode_their_shares(job: Job, data: TrainingSet, tmp_path: Path) -> None:
    job = replace(job, fit=replace(BATCH, held_out_images=2, mined_share=0.5))
    one, two = (run(job, tmp_path / str(count), text_cache=True, num_processes=count) for count in (1, 2))
    (store,) = stores_under([tmp_path / "2/texts"])
    assert len(store) == len(data.drawn_captions(job.fit)) == 12
    for name, value in one.items():
        assert (two[name] - value).norm() <= 1e-5 * value.norm(), name


def test_what_is_kept_is_what_a_training_can_score(data: TrainingSet) -> None:
    own = {caption for captions in data.captions for caption in captions}
    edits = {text for captions in data.edits for texts in captions for text in texts}
    mined = {text for texts in data.negatives for text in texts}
    assert len(own) == len(data.all_captions) == 6

    def drawn(**changes: object) -> set[str]:
        return set(data.drawn_captions(replace(CONFIG, **changes)))  # type: ignore[arg-type]

    assert drawn() == own | edits | mined
    assert drawn(edited_share=(0.0, 0.2), mined_share=0.0) == own | edits
    assert drawn(edited_share=0.0, mined_share=(0.2, 0.0)) == own | mined
    assert drawn(objective="dsm") == drawn(candidates="batch") == own
    assert drawn(objective="dsm", held_out_images=2) == own | edits | mined  # validation has candidates of its own
    for step in range(30):
        scored = data.candidates(CONFIG, CONFIG.positions_of(step)).captions
        assert {caption for captions in scored for caption in captions} <= drawn()


def test_without_room_captions_are_encoded_in_each_step(
    sd3: Backbone, small_disk: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    size = row_bytes(sd3.encode_prompts([""])) / 1e9
    assert keep(sd3, small_disk, [str(number) for number in range(1000)]) is None
    assert "text states of 1000 captions take" in caplog.text
    assert "captions are encoded in each step instead" in caplog.text
    assert not list(small_disk.rglob("*.safetensors*"))
    assert keep(sd3, tmp_path, max_gb=69.5 * size) is None
    assert keep(sd3, tmp_path, max_gb=70.5 * size) is not None
    # Of those that are there already none must fit again.
    assert keep(sd3, tmp_path, CAPTIONS[:10], max_gb=10.5 * size) is not None


def test_stores_differ_with_everything_that_text_states_depend_on(
    sd3: Backbone, sd3_folder: Path, tmp_path: Path
) -> None:
    example = sd3.encode_prompts([""])
    other = shutil.copytree(sd3_folder, tmp_path / "other")
    config = other / "text_encoder_2/config.json"
    config.write_text(config.read_text() + "\n")
    base = ModelConfig("sd3", str(sd3_folder))
    models = [base, replace(base, base=str(other)), replace(base, base="stabilityai/sd3")]
    models += [replace(models[-1], revision="main"), replace(base, dtype="bfloat16"), replace(base, t5=False)]
    models += [replace(base, quantization="int8"), replace(base, variant="fp16")]
    folders = [text_store(model, example, tmp_path).folder for model in models]
    folders.append(text_store(base, replace(example, states=example.states.repeat(1, 2, 1)), tmp_path).folder)
    assert len(set(folders)) == len(folders)
    # What they do not depend on: the autoencoder, and how it is run.
    same = replace(base, vae=str(sd3_folder / "vae"), device="cuda", licence="mine")
    assert text_store(same, example, tmp_path).folder == folders[0]


def test_by_default_states_of_a_t5_are_kept(sd3: Backbone, t5_folder: Path) -> None:
    with_t5 = load_backbone(ModelConfig("sd3", str(t5_folder), max_sequence_length=24))
    for backbone, is_default in ((sd3, False), (with_t5, True)):
        assert are_kept(backbone, ExecutionConfig()) == is_default
        assert are_kept(backbone, ExecutionConfig(text_cache=True))
        assert not are_kept(backbone, ExecutionConfig(text_cache=False))
