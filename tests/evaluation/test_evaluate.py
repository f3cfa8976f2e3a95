"""From the models under test to the summary, the table, the report and the results page."""

from __future__ import annotations

import html
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from softrepa_pipeline.backbones import ModelConfig, load_backbone
from softrepa_pipeline.evaluation import (
    Benchmark,
    Evaluation,
    EvaluationConfig,
    Model,
    Studio,
    evaluate,
    load_benchmark,
    load_measures,
)
from softrepa_pipeline.evaluation.report import Context, format_table, results_page, write_report
from softrepa_pipeline.evaluation.scorers import ScorerConfig, Scores
from softrepa_pipeline.inference import SamplingConfig
from softrepa_pipeline.shapes.verifier import verify
from softrepa_pipeline.soft_tokens import SoftTokens, SoftTokensConfig, save_soft_tokens
from softrepa_pipeline.stages.evaluate import evaluate_tokens

ROOT = Path(__file__).parents[2]
CLIP = str(ROOT / "data/06_models/embedded/clip")
SAMPLING = SamplingConfig(num_inference_steps=2, batch_size=32, seeds_per_prompt=2)
CONFIG = EvaluationConfig(
    prompts="shapes",
    prompts_per_task=3,
    validation_prompts_per_task=2,
    guidance_scales=(1.5, 3.0),
    sampling=SAMPLING,
    scorers=(ScorerConfig("verifier"), ScorerConfig("image_reward", "/nowhere")),
    sets=(ScorerConfig("cmmd", CLIP), ScorerConfig("fd_dinov2", "/nowhere")),
    strengths=(0.0, 1.0),
    retrieval_images=4,
    retrieval_captions=3,
)


@pytest.fixture(scope="module")
def base(model_folders: dict[str, Path]) -> Model:
    return Model(ModelConfig("sd3", str(model_folders["sd3"]), max_sequence_length=0))


@pytest.fixture(scope="module")
def soft(base: Model, tmp_path_factory: pytest.TempPathFactory) -> Model:
    sites = load_backbone(base.base).sites((0,))
    file = tmp_path_factory.mktemp("tokens") / "tokens.safetensors"
    tokens = SoftTokens(SoftTokensConfig(sites.names, 2, sites.width, 0))
    save_soft_tokens(tokens, file, {"family": "sd3", "objective": "softrepa"})
    return replace(base, tokens=str(file))


def studio_of(config: EvaluationConfig, benchmark: Benchmark, folder: Path) -> Studio:
    return Studio(load_measures(config.scorers, config.sets, benchmark.truths), config.sampling, folder)


@pytest.fixture(scope="module")
def evaluation(base: Model, soft: Model, world: Path, tmp_path_factory: pytest.TempPathFactory) -> Evaluation:
    benchmark = load_benchmark(CONFIG, world, ROOT)
    return evaluate(CONFIG, benchmark, base, soft, studio_of(CONFIG, benchmark, tmp_path_factory.mktemp("images")))


def test_the_first_scorer_is_told_by_task_and_every_measure_with_its_interval(evaluation: Evaluation) -> None:
    summary, base = evaluation.summary, evaluation.base
    claims = [prompt.truth for prompt in evaluation.benchmark.test.prompts]
    right = [[verify(image, claim) for image in images] for images, claim in zip(base.images, claims, strict=True)]
    assert np.array_equal(base.deciding, right)
    assert summary["base"]["overall"] == pytest.approx(np.mean(right))
    verifier, retrieval = summary["measures"]["verifier"], summary["measures"]["denoising_retrieval"]
    assert verifier["delta"] == pytest.approx(summary["delta"]["overall"])
    assert verifier["model"] == "softrepa_pipeline.shapes.verifier"
    assert verifier["p_holm"] == pytest.approx(min(1, max(verifier["p_holm"], verifier["delta"]["p"])))
    assert retrieval["base"] == pytest.approx(base.hits.mean())
    assert summary["sets"]["cmmd"]["base"] > 0
    asked = [claim.count for claim in claims if claim.count]
    assert np.sum(summary["counting"]["base"]) == 2 * len(asked)
    assert summary["measures"]["repetition_index"]["base"] >= 0
    assert len(summary["intrinsic"]["by_depth"]["hits"]) == 2
    assert summary["guidance"]["base"] == max(base.validation, key=lambda scale: (base.validation[scale], -scale))
    assert summary["seconds"]["scoring an image"]["verifier"] > 0
    json.dumps(summary)


def test_strength_0_is_the_base_and_the_curves_reuse_what_was_drawn(evaluation: Evaluation) -> None:
    curves = evaluation.summary["curves"]
    assert [point["guidance"] for point in curves["base"]] == [1.5, 3.0]
    at = evaluation.soft.guidance
    none, whole = curves["strength"]
    assert none["alignment"] == next(point for point in curves["base"] if point["guidance"] == at)["alignment"]
    assert whole == next(point for point in curves["soft"] if point["guidance"] == at)
    for point in curves["base"]:
        assert point["alignment"]["mean"] == pytest.approx(evaluation.base.validation[point["guidance"]])
        assert set(point["distances"]) == {"cmmd"}


def test_table_and_report_tell_what_was_not_measured_and_need_no_network(
    evaluation: Evaluation, tmp_path: Path
) -> None:
    summary = evaluation.summary
    summary.update(family="sd3", objective="softrepa")
    log = [{"step": 0.0, "loss": 2.0}, {"step": 1.0, "loss": 1.0, "validation_accuracy": 0.5}]
    edit = {"captions": {"source": "a red box", "target": "a blue box"}, "source": "data:,", "arms": []}
    write_report(evaluation, Context({"MLflow run": "abc"}, log, [edit]), tmp_path / "report.html")
    page = html.unescape((tmp_path / "report.html").read_text())
    for name in ("image_reward", "fd_dinov2"):
        reason = {**summary["measures"], **summary["sets"]}[name]["not_measured"]
        assert "/nowhere" in reason
        for text in (format_table(summary), page):
            assert f"not measured: {reason}" in text
    for title in (
        "By task",
        "Guidance and strength",
        "Alignment against fidelity: cmmd",
        "Training",
        "Counting",
        "What the errors tell",
        "No change",
    ):
        assert title in page
    assert '<td>MLflow run</td><td class="text">abc</td>' in page
    assert "http" not in page


def test_the_results_page_has_a_row_for_each_task_and_measure(evaluation: Evaluation) -> None:
    summary = {**evaluation.summary, "seconds": {"training": 60}}
    page = results_page(
        [
            {
                "family": "sd3",
                "seeds": [0],
                "conditional_only": True,
                "machine": "",
                "objectives": {"softrepa": summary},
            }
        ]
    )
    table = page[page.index("| | base |") :].rstrip()
    for row in ("| counting |", "| overall |", "| denoising retrieval |", "| cmmd, distance |", "| p of the gain"):
        assert row in table
    assert "\n\n" not in table
    assert "image reward" not in page


def test_prompts_of_a_file_need_no_world(base: Model, soft: Model, tmp_path: Path) -> None:
    file = tmp_path / "mine.txt"
    file.write_text("two red squares\na cat\n")
    scorers = (ScorerConfig("clip_score", CLIP),)
    config = replace(CONFIG, prompts=str(file), guidance_scales=(2.0,), scorers=scorers)
    benchmark = load_benchmark(config, tmp_path / "no world", tmp_path)
    summary = evaluate(config, benchmark, base, soft, studio_of(config, benchmark, tmp_path / "images")).summary
    assert summary["num_prompts_by_task"] == {"mine": 2}
    assert summary["curves"] == {}
    assert list(summary["measures"]) == ["clip_score"]
    assert "no real images" in summary["sets"]["cmmd"]["not_measured"]


def test_several_guidance_scales_need_validation_prompts(base: Model, soft: Model, tmp_path: Path) -> None:
    config = replace(CONFIG, prompts="geneval", scorers=(ScorerConfig("clip_score", CLIP),))
    benchmark = load_benchmark(config, tmp_path, ROOT / "data/01_raw/prompts")
    assert len(benchmark.test.prompts) == 6 * 3
    with pytest.raises(ValueError, match=r"guidance_scales has 2 scales.*'geneval' have no validation split"):
        evaluate(config, benchmark, base, soft, studio_of(config, benchmark, tmp_path))


def test_without_its_first_scorer_nothing_is_drawn() -> None:
    with pytest.raises(ValueError, match=r"image_reward, the first of evaluation\.scorers.*not measured: .*/nowhere"):
        load_measures((ScorerConfig("image_reward", "/nowhere"),), (), {})
    with pytest.raises(ValueError, match=r"evaluation\.scorers is empty"):
        load_measures((), (), {})


def test_wrong_sizes_are_named() -> None:
    with pytest.raises(ValueError, match=r"evaluation\.retrieval_captions must be at least 2, not 1"):
        replace(CONFIG, retrieval_captions=1)
    with pytest.raises(ValueError, match=r"evaluation\.guidance_scales is empty"):
        replace(CONFIG, guidance_scales=())


def test_scores_carry_the_scale_that_tables_show_them_at(evaluation: Evaluation) -> None:
    scores = evaluation.base.scores["verifier"]
    assert isinstance(scores, Scores)
    assert scores.scale == evaluation.summary["scale"] == 100
    assert f"{100 * evaluation.summary['base']['overall']:.1f}" in format_table(evaluation.summary)


def test_tokens_may_be_evaluated_on_the_conditional_branch_alone(soft: Model, world: Path, tmp_path: Path) -> None:
    parameters = {
        "prompts": "shapes",
        "prompts_per_task": 1,
        "validation_prompts_per_task": 1,
        "guidance_scales": [3.0],
        "strengths": [1.0],
        "scorers": [{"name": "verifier"}],
        "retrieval_images": 2,
    }
    num_images = {}
    for conditional_only in (False, True):
        summary = evaluate_tokens(
            {"file": soft.tokens},
            {"folder": str(world)},
            {"family": "sd3", "base": soft.base.base, "max_sequence_length": 0},
            {**parameters, "conditional_only": conditional_only},
            {"settings": {"num_inference_steps": 2, "batch_size": 8}},
            {name: str(tmp_path / name) for name in ("evaluation", "images", "prompts")},
            {},
        )
        assert summary["conditional_only"] == conditional_only
        num_images[conditional_only] = len(list((tmp_path / "images").iterdir()))
        report = (tmp_path / "evaluation/report.html").read_text()
        assert ("the conditional branch alone" in report) == conditional_only
    # Base, soft tokens on the test prompts, their curves on the validation prompts; then the soft ones anew.
    assert num_images == {False: 4 * 6, True: 6 * 6}
