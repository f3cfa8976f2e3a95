"""Scorers within an evaluation: from the models under test to the table, the report and the results page."""

from __future__ import annotations

from pathlib import Path

import pytest

from softrepa_pipeline.backbones import Backbone
from softrepa_pipeline.evaluation import EvaluationConfig, evaluate, format_table, results_page, write_report
from softrepa_pipeline.evaluation.scorers import ScorerConfig, load_scorers
from softrepa_pipeline.inference import SamplingConfig
from softrepa_pipeline.shapes.dataset import claims_of
from softrepa_pipeline.soft_tokens import SoftTokens, SoftTokensConfig


def test_scores_stand_beside_the_verdicts_with_intervals(sd3: Backbone, world: Path, tmp_path: Path) -> None:
    scorers = (ScorerConfig("verifier"), ScorerConfig("image_reward", str(tmp_path / "none")))
    sampling = SamplingConfig(num_inference_steps=2, batch_size=32, seeds_per_prompt=2)
    config = EvaluationConfig(3, 1, (2.0,), sampling, scorers, retrieval_images=4, retrieval_captions=3)
    tokens = SoftTokens(SoftTokensConfig(("0",), 2, 128, 0))
    evaluation = evaluate(config, sd3, tokens, world, load_scorers(scorers, claims_of(world)))
    summary = evaluation.summary

    verifier = summary["scores"]["verifier"]
    assert verifier["base"] == pytest.approx(summary["base"]["overall"])
    assert verifier["soft"] == pytest.approx(summary["soft"]["overall"])
    assert verifier["delta"] == pytest.approx(summary["delta"]["overall"])
    assert verifier["model"] == "softrepa_pipeline.shapes.verifier"
    assert summary["seconds"]["scoring an image"]["verifier"] > 0
    assert evaluation.base.scores["verifier"].values.shape == (len(evaluation.prompts) * 2,)

    reason = summary["scores"]["image_reward"]["not_measured"]
    assert str(tmp_path / "none") in reason
    summary.update(family="sd3", objective="softrepa")
    write_report(evaluation, tmp_path / "report.html")
    for text in (format_table(summary), (tmp_path / "report.html").read_text()):
        assert f"not measured: {reason}" in text
    family = {"family": "sd3", "seeds": [0], "machine": "", "objectives": {"softrepa": summary}}
    summary["seconds"]["training"] = 60
    page = results_page([family])
    table = page[page.index("| task |") :].rstrip()
    assert "| verifier |" in table
    assert "\n\n" not in table
    assert "image_reward" not in page
