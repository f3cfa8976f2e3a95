"""The embedded edits' truth, the sweep over them, and what comes of it: files, command and pipeline node."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from conftest import load
from PIL import Image

from softrepa_pipeline.commands import main
from softrepa_pipeline.evaluation.editing import EditConfig, SweepConfig, compare, configured, format_table
from softrepa_pipeline.evaluation.editing.benchmark import KINDS, draw_edits
from softrepa_pipeline.evaluation.editing.front import Curve, front_gains
from softrepa_pipeline.pipelines.edit.nodes import compare_edits
from softrepa_pipeline.shapes.claims import is_true
from softrepa_pipeline.shapes.verifier import look
from softrepa_pipeline.soft_tokens import SoftTokens, SoftTokensConfig, save_soft_tokens

FLOW = EditConfig("flowedit", num_steps=2, start_step=0, source_guidance=1.0, target_guidance=2.0, batch_size=5)


def tokens() -> SoftTokens:
    made = SoftTokens(SoftTokensConfig(("0", "2"), 4, 128, 10), torch.Generator().manual_seed(0))
    with torch.no_grad():
        made.base.mul_(50)
    return made


def test_edits_change_one_word_of_an_unseen_target_and_are_not_done_yet() -> None:
    edits = draw_edits(8)
    assert Counter(own.kind for own in edits) == dict.fromkeys(KINDS, 8)
    for own in edits:
        before, after = own.captions.source.split(), own.captions.target.split()
        assert sum(a != b for a, b in zip(before, after, strict=True)) == 1
        assert own.claim.split == "test"
        sight = look(own.image)
        assert not is_true(own.claim, sight.things, sight.background)
        assert 0 < own.mask.sum() < own.mask.size
    again = draw_edits(8)
    assert all(np.array_equal(a.image, b.image) and a.captions == b.captions for a, b in zip(edits, again, strict=True))
    shorter = draw_edits(3)
    assert [own.captions for own in shorter if own.kind == "size"] == [
        own.captions for own in edits if own.kind == "size"
    ][:3]
    assert draw_edits(2, seed=1)[0].captions != draw_edits(2, "validation", seed=1)[0].captions


def test_masks_hold_what_the_edit_needs_and_no_other_object() -> None:
    for own in draw_edits(8):
        things = look(own.image).things
        centers = [bool(own.mask[int(thing.y), int(thing.x)]) for thing in things]
        if own.kind in ("color", "shape", "size"):
            assert sum(centers) == 1
        elif own.kind == "background":
            assert not any(centers)
            assert own.mask[[0, 0, -1, -1], [0, -1, 0, -1]].sum() >= 3
        else:
            fewer = len(things) > (own.claim.count or 0)
            assert all(centers) == fewer
            assert any(centers) == fewer


def test_a_painted_edit_succeeds_and_keeps_the_rest() -> None:
    """What the mask allows is enough: an object painted in the target's colour makes the claim true."""
    colors = {"red": (214, 40, 40), "green": (36, 160, 64), "blue": (48, 84, 220), "yellow": (240, 200, 32)}
    for own in (own for own in draw_edits(8) if own.kind == "color"):
        image, color = own.image.astype(float), own.claim.objects[0].color
        chroma = (image.max(axis=2) - image.min(axis=2)) / 255
        coverage = np.where(own.mask, np.clip(chroma / chroma[own.mask].max(), 0, 1), 0)[..., None]
        grey = np.median(image[~own.mask], axis=0)
        assert color is not None
        painted = np.where(own.mask[..., None], coverage * colors[color] + (1 - coverage) * grey, image).astype(
            np.uint8
        )
        sight = look(painted)
        assert is_true(own.claim, sight.things, sight.background), own.captions
        np.testing.assert_array_equal(painted[~own.mask], own.image[~own.mask])


def test_front_gains_are_read_at_equal_preservation() -> None:
    kept = np.repeat([[10.0], [20.0], [30.0]], 50, axis=1)
    base = Curve(np.repeat([[0.8], [0.4], [0.0]], 50, axis=1), kept)
    # As often right, but 5 dB better kept: the base has 0.2 less there, and its curve ends before the last point.
    found = front_gains(base, Curve(base.success, kept + 5), ["a"] * 25 + ["b"] * 25, (0, 1, 2))
    assert [entry["start_step"] for entry in found] == [0, 1]
    for entry in found:
        np.testing.assert_allclose([entry["gain"], entry["low"], entry["high"]], 0.2)


def test_the_interval_of_a_front_without_gain_holds_zero() -> None:
    rng = np.random.default_rng(0)
    success, kept = rng.random((3, 60)) < [[0.7], [0.5], [0.2]], rng.normal([[20], [25], [30]], 2, (3, 60))
    other = rng.random((3, 60)) < [[0.7], [0.5], [0.2]]
    for entry in front_gains(Curve(success, kept), Curve(other, kept), ["a"] * 60, (0, 1, 2)):
        assert entry["low"] < 0 < entry["high"]


def test_a_sweep_goes_on_where_it_stopped_and_equal_arms_differ_by_nothing(
    model_folders: dict[str, Path], tmp_path: Path
) -> None:
    backbone = load(model_folders["sd3"], "sd3")
    config = SweepConfig(edits_per_kind=1, start_steps=(0, 1), settings=FLOW)
    whole = compare(config, backbone, tokens(), tmp_path)
    assert not backbone.denoiser._forward_pre_hooks
    assert sorted(file.name for file in tmp_path.iterdir()) == ["base-0.png", "base-1.png", "soft-0.png", "soft-1.png"]
    (tmp_path / "soft-1.png").unlink()
    before = (tmp_path / "base-0.png").stat().st_mtime_ns
    again = compare(config, backbone, tokens(), tmp_path)
    assert again.summary == whole.summary
    assert (tmp_path / "base-0.png").stat().st_mtime_ns == before
    assert not np.array_equal(whole.outcomes["base"][0].images, whole.outcomes["soft"][0].images)
    for arm in ("base", "soft"):
        for start in (0, 1):
            Image.open(tmp_path / f"base-{start}.png").save(tmp_path / f"{arm}-{start}.png")
    same = compare(config, backbone, tokens(), tmp_path).summary
    for point in same["points"]:
        assert point["delta"]["success"] == {**point["delta"]["kept"]}
        assert point["delta"]["kept"]["mean"] == point["delta"]["kept"]["high"] == 0
        assert point["base"]["measures"]["structure_distance"] is None
    assert len(format_table(same).splitlines()) == 3


def test_wrong_sweeps_are_named() -> None:
    with pytest.raises(ValueError, match=r"edit.start_step must be in \[0, 1\], not 2"):
        SweepConfig(1, (0, 2), FLOW)
    with pytest.raises(ValueError, match=r"edit.start_steps must rise, not \[1, 0\]"):
        SweepConfig(1, (1, 0), FLOW)
    with pytest.raises(ValueError, match=r"unknown parameter edit.settings.step; did you mean edit.settings"):
        configured("embedded", "sd3", False, {"step": 3})
    with pytest.raises(ValueError, match="no editing preset 'best' for family 'sd3'; presets: embedded, published"):
        configured("best", "sd3", False, {})


def test_the_node_writes_a_report_without_network(
    model_folders: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "tokens.safetensors"
    save_soft_tokens(tokens(), file, {"family": "sd3", "objective": "softrepa"})
    parameters = {"edits_per_kind": 1, "start_steps": [0, 1], "settings": {"num_steps": 2, "start_step": 0}}
    summary = compare_edits(
        {"file": str(file)},
        {"family": "sd3", "base": str(model_folders["sd3"]), "max_sequence_length": 0},
        {"model": "data/06_models/embedded/clip", "device": "cpu"},
        {**parameters, "dino": "./none"},
        {"edits": str(tmp_path / "edits"), "edit_report": str(tmp_path / "edit.html")},
        force=False,
    )
    assert "structure distance is not measured: no DINO at ./none" in caplog.text
    assert json.loads(json.dumps(summary)) == summary
    page = (tmp_path / "edit.html").read_text()
    assert page.count("<figure>") == 5
    assert "not measured" in page
    assert "http" not in page.replace("http-equiv", "")
    measured = summary["points"][0]["soft"]["measures"]
    assert -1 <= measured["clip_edited"] <= 1
    assert measured["structure_distance"] is None


def test_the_command_edits_an_image(model_folders: dict[str, Path], tmp_path: Path) -> None:
    Image.fromarray(draw_edits(1)[0].image).resize((64, 48)).save(tmp_path / "in.png")
    file = tmp_path / "tokens.safetensors"
    save_soft_tokens(tokens(), file, {"family": "sd3"})
    common = ["edit", "--family", "sd3", "--base", str(model_folders["sd3"]), "--max-sequence-length", "0"]
    common += ["--image", str(tmp_path / "in.png"), "--source", "a red circle", "--target", "a blue circle"]
    common += ["--steps", "3", "--start-step", "1"]
    pictures = {}
    for name, extra in {
        "base": [],
        "soft": ["--tokens", str(file)],
        "none": ["--tokens", str(file), "--strength", "0", "--target-guidance", "13.5"],
    }.items():
        done = CliRunner().invoke(main, [*common, *extra, "--output", str(tmp_path / f"{name}.png")])
        assert done.exit_code == 0, done.output
        pictures[name] = np.asarray(Image.open(tmp_path / f"{name}.png"))
    assert pictures["base"].shape == (32, 32, 3)
    np.testing.assert_array_equal(pictures["base"], pictures["none"])
    assert not np.array_equal(pictures["base"], pictures["soft"])
    wrong = CliRunner().invoke(main, [*common, "--method", "pnp", "--output", str(tmp_path / "wrong.png")])
    assert "Error: edit.method pnp is for sd15, sdxl, not for sd3" in wrong.output


def test_changed_settings_keep_the_rest_of_the_preset() -> None:
    config = configured("published", "sd3", True, {"target_guidance": 5.0})
    assert config == replace(configured("published", "sd3", True, {}), target_guidance=5.0)
    assert (config.num_steps, config.start_step, config.source_guidance) == (50, 20, 3.5)
