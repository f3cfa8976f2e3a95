"""Prompt sets by name, and what a bad file is told."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from softrepa_pipeline.evaluation.prompts import prompt_set

COMMITTED = Path(__file__).parents[2] / "data/01_raw/prompts"
PUBLISHED = Path("/work/shared/data/prompts")
CATEGORIES = ("color", "shape", "texture", "spatial", "3d_spatial", "numeracy", "non_spatial", "complex")


def test_geneval_is_committed_whole() -> None:
    prompts = prompt_set("geneval", COMMITTED)
    assert Counter(prompt.task for prompt in prompts) == {
        "single_object": 80,
        "two_object": 99,
        "counting": 80,
        "colors": 94,
        "position": 100,
        "color_attr": 100,
    }
    assert len(prompts) == 553


@pytest.mark.skipif(not PUBLISHED.is_dir(), reason="the published files are not here")
@pytest.mark.parametrize(
    ("name", "count"), [("geneval", 553), ("t2i_compbench", 2400), ("parti", 1632), ("drawbench", 200)]
)
def test_the_published_files_are_read_whole(name: str, count: int) -> None:
    prompts = prompt_set(name, PUBLISHED)
    assert len(prompts) == count
    assert all(prompt.text == prompt.text.strip() and prompt.task for prompt in prompts)


def test_small_sets_of_every_kind(tmp_path: Path) -> None:
    for name in ("t2i_compbench", "parti", "drawbench", "coco_val"):
        (tmp_path / name).mkdir()
    for category in CATEGORIES:
        (tmp_path / f"t2i_compbench/{category}_val.txt").write_bytes(f"a {category}\r\nanother\r\n".encode())
    (tmp_path / "parti/PartiPrompts.tsv").write_text('Prompt\tCategory\tChallenge\tNote\na "cat\tAnimals\tBasic\t\n')
    (tmp_path / "drawbench/drawbench.txt").write_text("A red car.\nA bus.")
    captions = [{"image_id": 7, "id": 3, "caption": "second"}, {"image_id": 7, "id": 1, "caption": "first "}]
    captions.append({"image_id": 2, "id": 9, "caption": "other"})
    (tmp_path / "coco_val/captions_val2017.json").write_text(json.dumps({"annotations": captions}))
    read = {name: prompt_set(name, tmp_path) for name in ("t2i_compbench", "parti", "drawbench", "coco_val")}
    first = [(prompt.text, prompt.task) for prompt in read["t2i_compbench"][:2]]
    assert first == [("a color", "color"), ("another", "color")]
    assert len(read["t2i_compbench"]) == 16
    assert [(prompt.text, prompt.task) for prompt in read["parti"]] == [('a "cat', "Animals")]
    assert [prompt.text for prompt in read["drawbench"]] == ["A red car.", "A bus."]
    assert [prompt.text for prompt in read["coco_val"]] == ["other", "first"]


GOOD = '{"tag": "colors", "include": [{"class": "cow", "count": 1}], "prompt": "a cow"}\n'


@pytest.mark.parametrize(
    ("name", "file", "content", "message"),
    [
        (
            "geneval",
            "evaluation_metadata.jsonl",
            GOOD + "{not json}\n",
            r"metadata.jsonl, line 2: Expecting",
        ),
        ("geneval", "evaluation_metadata.jsonl", GOOD * 2 + '{"tag": "art"}\n', r"line 3: `tag` must be one of"),
        ("geneval", "evaluation_metadata.jsonl", GOOD.replace("a cow", ""), r"line 1: no prompt"),
        ("geneval", "evaluation_metadata.jsonl", GOOD + "\n" + GOOD, r"line 2: empty, where a prompt should stand"),
        ("drawbench", "drawbench.txt", b"fine\n\xff\xfe\n", r"drawbench.txt, line 2: not UTF-8"),
        ("parti", "PartiPrompts.tsv", "Text\tCategory\n", r"PartiPrompts.tsv, line 1: the first columns"),
        ("parti", "PartiPrompts.tsv", "Prompt\tCategory\nx\ty\nz\n", r"PartiPrompts.tsv, line 3: 2 columns"),
        ("coco_val", "captions_val2017.json", '{"annotations":\n [}', r"captions_val2017.json, line 2"),
        ("coco_val", "captions_val2017.json", '{"images": []}', r"captions_val2017.json: not COCO's captions"),
    ],
)
def test_a_bad_file_is_named_with_its_line(
    tmp_path: Path, name: str, file: str, content: str | bytes, message: str
) -> None:
    (tmp_path / name).mkdir()
    (tmp_path / name / file).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=message):
        prompt_set(name, tmp_path)


def test_an_unknown_set_and_a_missing_file_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="unknown prompt set 'gen_eval'; did you mean geneval"):
        prompt_set("gen_eval", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"PartiPrompts.tsv; docs/metrics.md"):
        prompt_set("parti", tmp_path)
