"""The embedded edits' truth, the sweep over them, and what comes of it: files and pipeline node."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from disks import fill

from softrepa_pipeline.backbones import ModelConfig
from softrepa_pipeline.evaluation.editing import EditConfig, SweepConfig, compare, configured, format_table, summarise
from softrepa_pipeline.evaluation.editing.benchmark import KINDS, draw_edits
from softrepa_pipeline.evaluation.editing.front import Curve, front_gain
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


def test_gains_are_read_at_equal_preservation() -> None:
    kept = np.repeat([[10.0], [20.0], [30.0]], 50, axis=1)
    base = Curve(np.repeat([[0.8], [0.4], [0.0]], 50, axis=1), kept)
    # As often right, but 5 dB better kept: the base has 0.2 less there, and its curve ends before the last point.
    found = front_gain(base, Curve(base.success, kept + 5), ["a"] * 25 + ["b"] * 25, (0, 1, 2))
    assert found is not None
    assert (found["from_db"], found["to_db"]) == (15, 30)
    assert [entry["start_step"] for entry in found["steps"]] == [0, 1]
    for entry in (found, *found["steps"]):
        np.testing.assert_allclose([entry["gain"], entry["low"], entry["high"]], 0.2)
    assert front_gain(base, Curve(base.success, kept + 25), ["a"] * 50, (0, 1, 2)) is None


def test_the_gain_along_the_front_weighs_preservations_evenly_and_changes_sign_with_the_arms() -> None:
    base = Curve(np.array([[1.0], [0.0]]), np.array([[10.0], [20.0]]))
    bent = Curve(np.array([[1.0], [1.0], [0.0]]), np.array([[10.0], [15.0], [20.0]]))
    for first, second, sign in ((base, bent, 1), (bent, base, -1)):
        found = front_gain(first, second, ["a"], range(len(second.kept)))
        assert found is not None
        # A triangle of half the range's length and half a success high.
        assert found["gain"] == pytest.approx(sign * 0.25, abs=0.005)


def test_the_interval_of_a_front_without_gain_holds_zero() -> None:
    rng = np.random.default_rng(0)
    success, kept = rng.random((3, 60)) < [[0.7], [0.5], [0.2]], rng.normal([[20], [25], [30]], 2, (3, 60))
    other = rng.random((3, 60)) < [[0.7], [0.5], [0.2]]
    found = front_gain(Curve(success, kept), Curve(other, kept), ["a"] * 60, (0, 1, 2))
    assert found is not None
    for entry in (found, *found["steps"]):
        assert entry["low"] < 0 < entry["high"]


@pytest.fixture
def base(model_folders: dict[str, Path]) -> ModelConfig:
    return ModelConfig("sd3", str(model_folders["sd3"]), max_sequence_length=0)


@pytest.fixture
def tokens_file(tmp_path: Path) -> Path:
    file = tmp_path / "tokens.safetensors"
    save_soft_tokens(tokens(), file, {"family": "sd3", "objective": "softrepa"})
    return file


SWEEP = SweepConfig(edits_per_kind=1, start_steps=(0, 1), settings=(FLOW,))


def written(folder: Path) -> dict[str, int]:
    """Names of the files in a folder and when each was written."""
    return {file.name: file.stat().st_mtime_ns for file in folder.iterdir()}


def test_a_sweep_goes_on_where_it_stopped(base: ModelConfig, tokens_file: Path, tmp_path: Path) -> None:
    work = tmp_path / "edits"
    whole = compare(SWEEP, base, tokens_file, work)
    assert not np.array_equal(
        whole.outcomes["flowedit"]["base"][0].images, whole.outcomes["flowedit"]["soft"][0].images
    )
    before = written(work)
    assert len(before) == 4
    lost = sorted(before)[1]
    (work / lost).unlink()
    assert summarise(compare(SWEEP, base, tokens_file, work)) == summarise(whole)
    after = written(work)
    assert [name for name in before if before[name] != after[name]] == [lost]


@pytest.mark.parametrize("damage", [b"", b"no image", None])
def test_damaged_pictures_are_made_anew(
    base: ModelConfig, tokens_file: Path, tmp_path: Path, damage: bytes | None
) -> None:
    work = tmp_path / "edits"
    whole = summarise(compare(SWEEP, base, tokens_file, work))
    file = min(work.iterdir())
    content = file.read_bytes()
    file.write_bytes(content[:-40] if damage is None else damage)
    assert summarise(compare(SWEEP, base, tokens_file, work)) == whole
    assert file.read_bytes() == content


def test_a_full_disk_names_the_picture_and_keeps_those_before(
    base: ModelConfig, tokens_file: Path, small_disk: Path
) -> None:
    early = replace(SWEEP, start_steps=(0,))
    compare(early, base, tokens_file, small_disk)
    before = written(small_disk)
    ballast = fill(small_disk)
    with pytest.raises(OSError, match=rf"No space left on device: '{small_disk}/[0-9a-f]{{32}}\.png'"):
        compare(SWEEP, base, tokens_file, small_disk)
    assert not list(small_disk.glob("*.partial"))
    ballast.unlink()
    compare(SWEEP, base, tokens_file, small_disk)
    after = written(small_disk)
    assert before.items() <= after.items()
    assert len(after) == 4


def test_tokens_settings_and_edits_are_in_a_picture_s_name_and_the_base_serves_all_tokens(
    base: ModelConfig, tokens_file: Path, tmp_path: Path
) -> None:
    work = tmp_path / "edits"
    compare(SWEEP, base, tokens_file, work)
    other = tokens()
    with torch.no_grad():
        other.base.mul_(0.5)
    save_soft_tokens(other, tmp_path / "other.safetensors", {"family": "sd3", "objective": "agsm"})
    for config, file, more in (
        (SWEEP, tmp_path / "other.safetensors", 2),
        (replace(SWEEP, settings=(replace(FLOW, target_guidance=3.0),)), tokens_file, 4),
        (replace(SWEEP, edits_per_kind=2), tokens_file, 4),
        (replace(SWEEP, start_steps=(1,)), tokens_file, 0),
    ):
        before = len(written(work))
        compare(config, base, file, work)
        assert len(written(work)) == before + more


def test_equal_arms_differ_by_nothing(base: ModelConfig, tmp_path: Path) -> None:
    nothing = tokens()
    none = tmp_path / "none.safetensors"
    save_soft_tokens(nothing, none, {"family": "sd3"})
    comparison = compare(SWEEP, base, none, tmp_path / "edits")
    arms = comparison.outcomes["flowedit"]
    same = replace(comparison, outcomes={"flowedit": {"base": arms["base"], "soft": arms["base"]}})
    summary = summarise(same)
    for point in summary["methods"]["flowedit"]["points"]:
        assert point["delta"]["success"] == {**point["delta"]["kept"]}
        assert point["delta"]["kept"]["mean"] == point["delta"]["kept"]["high"] == 0
        assert point["base"]["measures"]["structure_distance"] is None
    assert len(format_table(summary).splitlines()) == 4


def test_wrong_sweeps_are_named() -> None:
    with pytest.raises(ValueError, match=r"edit.start_step must be in \[0, 1\], not 2"):
        SweepConfig(1, (0, 2), (FLOW,))
    with pytest.raises(ValueError, match=r"edit.start_steps must rise, not \[1, 0\]"):
        SweepConfig(1, (1, 0), (FLOW,))
    with pytest.raises(
        ValueError, match=r"edit.methods must name one or more, none twice, not \['flowedit', 'flowedit'\]"
    ):
        SweepConfig(1, (0,), (FLOW, FLOW))
    with pytest.raises(ValueError, match=r"unknown parameter edit.settings.step; did you mean edit.settings"):
        configured("embedded", "sd3", False, {"step": 3})
    with pytest.raises(ValueError, match="no editing preset 'best' for family 'sd3'; presets: embedded, published"):
        configured("best", "sd3", False, {})


PARAMETERS: dict[str, Any] = {
    "edits_per_kind": 1,
    "start_steps": [0, 1],
    "methods": None,
    "settings": {"num_steps": 2, "start_step": 0},
    "dino": None,
}


def run_node(folder: Path, model: ModelConfig, tokens_file: Path, **changes: Any) -> dict[str, Any]:
    return compare_edits(
        {"file": str(tokens_file)},
        {"family": model.family, "base": model.base, "max_sequence_length": 0},
        {"model": "data/06_models/embedded/clip", "device": "cpu"},
        {**PARAMETERS, **changes},
        {"edits": str(folder / "edits"), "evaluation": str(folder / "report")},
        force=False,
    )


def test_the_node_writes_a_report_without_network(
    base: ModelConfig, tokens_file: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    summary = run_node(tmp_path, base, tokens_file, dino="./none")
    assert "structure distance is not measured: no DINO at ./none" in caplog.text
    assert json.loads(json.dumps(summary)) == summary
    page = (tmp_path / "report" / "edit.html").read_text()
    assert page.count("<figure>") == 5
    assert "not measured" in page
    assert "http" not in page.replace("http-equiv", "")
    measured = summary["methods"]["flowedit"]["points"][0]["soft"]["measures"]
    assert -1 <= measured["clip_edited"] <= 1
    assert measured["structure_distance"] is None


def test_two_methods_stand_side_by_side(model_folders: dict[str, Path], tmp_path: Path) -> None:
    file = tmp_path / "sdxl.safetensors"
    save_soft_tokens(
        SoftTokens(SoftTokensConfig(("mid.0",), 4, 128, 10)), file, {"family": "sdxl", "objective": "agsm"}
    )
    model = ModelConfig("sdxl", str(model_folders["sdxl"]))
    summary = run_node(tmp_path, model, file, methods=["pnp", "ddim"])
    assert list(summary["methods"]) == ["pnp", "ddim"]
    assert summary["methods"]["pnp"]["points"][0] != summary["methods"]["ddim"]["points"][0]
    page = (tmp_path / "report" / "edit.html").read_text()
    assert page.count("<figure>") == 10
    assert "<h2>pnp</h2>" in page
    assert "<h2>ddim</h2>" in page


def test_the_node_names_what_is_wrong_with_its_input(base: ModelConfig, tokens_file: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no soft tokens at .*none\.safetensors; train them with"):
        run_node(tmp_path, base, tmp_path / "none.safetensors")
    with pytest.raises(ValueError, match=r"tokens\.safetensors holds soft tokens for family sd3, not for sdxl"):
        run_node(tmp_path, replace(base, family="sdxl"), tokens_file)
    with pytest.raises(ValueError, match=r"edit\.method pnp is for sd15, sdxl, not for sd3"):
        run_node(tmp_path, base, tokens_file, methods=["pnp"])
    with pytest.raises(ValueError, match=r"edit\.settings changes every method; name methods in edit\.methods"):
        run_node(tmp_path, base, tokens_file, settings={"method": "ddim"})
    assert not (tmp_path / "edits").exists()


def test_a_full_disk_leaves_no_half_report(
    base: ModelConfig, tokens_file: Path, tmp_path: Path, small_disk: Path
) -> None:
    run_node(tmp_path, base, tokens_file)
    (tmp_path / "report").rename(tmp_path / "whole")
    (tmp_path / "report").symlink_to(small_disk)
    fill(small_disk)
    with pytest.raises(OSError, match=r"No space left on device: '.*edit\.html'"):
        run_node(tmp_path, base, tokens_file)
    assert [file.name for file in small_disk.iterdir()] == ["ballast"]


def test_changed_settings_keep_the_rest_of_the_preset() -> None:
    config = configured("published", "sd3", True, {"target_guidance": 5.0})
    assert config == replace(configured("published", "sd3", True, {}), target_guidance=5.0)
    assert (config.num_steps, config.start_step, config.source_guidance) == (50, 20, 3.5)
