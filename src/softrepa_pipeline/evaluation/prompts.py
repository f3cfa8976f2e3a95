"""Published prompt sets by name, read from the files that their authors publish; nothing is downloaded."""

from __future__ import annotations

import csv
import difflib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from softrepa_pipeline.evaluation.scorers.geneval_rules import Request, request_from_record
from softrepa_pipeline.shapes.claims import Claim

_T2I_COMPBENCH = ("color", "shape", "texture", "spatial", "3d_spatial", "numeracy", "non_spatial", "complex")


@dataclass(frozen=True)
class TaskPrompt:
    """A prompt, the group that its set's results are told by, and what it asks for where its set says that."""

    text: str
    task: str
    truth: Claim | Request | None = None


def prompt_set(name: str, folder: Path) -> list[TaskPrompt]:
    """A set's prompts in the order of its files, which lie in `folder/<name>/` as published (docs/metrics.md).

    A name that ends in `.txt` is a file of your own, one prompt a line.

    Raises:
        ValueError: there is no such set, or a line is not what it should be; the message names file and line.
        FileNotFoundError: a file is not there.
    """
    if name.endswith(".txt"):
        return _own(Path(name))
    if name not in _READERS:
        near = difflib.get_close_matches(name, _READERS, n=1, cutoff=0.0)[0]
        raise ValueError(f"unknown prompt set {name!r}; did you mean {near}? Known: {', '.join(_READERS)}")
    return list(_READERS[name](folder / name))


def _own(path: Path) -> list[TaskPrompt]:
    prompts = [TaskPrompt(line, path.stem) for _, line in _lines(path)]
    if not prompts:
        raise ValueError(f"{path}: no prompts in it; one a line is expected")
    return prompts


def _text(path: Path) -> str:
    if not path.is_file():
        raise FileNotFoundError(f"no prompts at {path}; docs/metrics.md says where they are published")
    try:
        return path.read_text("utf-8")
    except UnicodeDecodeError as error:
        line = path.read_bytes()[: error.start].count(b"\n") + 1
        raise ValueError(f"{path}, line {line}: not UTF-8 text") from error


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Lines with their numbers from 1; an empty line may only be the last."""
    lines = [line.strip() for line in _text(path).splitlines()]
    if lines and not lines[-1]:
        lines.pop()
    for number, line in enumerate(lines, start=1):
        if not line:
            raise ValueError(f"{path}, line {number}: empty, where a prompt should stand")
        yield number, line


def _geneval(folder: Path) -> Iterator[TaskPrompt]:
    path = folder / "evaluation_metadata.jsonl"
    for number, line in _lines(path):
        try:
            record = json.loads(line)
            request = request_from_record(record)
            yield TaskPrompt(_prompt_of(record), request.task, request)
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}") from error


def _prompt_of(record: Mapping[str, Any]) -> str:
    if not isinstance(record.get("prompt"), str) or not record["prompt"].strip():
        raise ValueError("no prompt")
    return record["prompt"]


def _t2i_compbench(folder: Path) -> Iterator[TaskPrompt]:
    for task in _T2I_COMPBENCH:
        yield from (TaskPrompt(line, task) for _, line in _lines(folder / f"{task}_val.txt"))


def _drawbench(folder: Path) -> Iterator[TaskPrompt]:
    yield from (TaskPrompt(line, "drawbench") for _, line in _lines(folder / "drawbench.txt"))


def _parti(folder: Path) -> Iterator[TaskPrompt]:
    path = folder / "PartiPrompts.tsv"
    rows = csv.reader(_text(path).splitlines(), delimiter="\t", quoting=csv.QUOTE_NONE)
    header = next(rows, [])
    if header[:2] != ["Prompt", "Category"]:
        raise ValueError(f"{path}, line 1: the first columns must be Prompt and Category, not {header[:2]}")
    for number, row in enumerate(rows, start=2):
        if len(row) != len(header) or not row[0].strip() or not row[1].strip():
            raise ValueError(f"{path}, line {number}: {len(header)} columns with a prompt and a category are expected")
        yield TaskPrompt(row[0].strip(), row[1])


def _coco_val(folder: Path) -> Iterator[TaskPrompt]:
    """Each image's first caption, by image: 5,000 prompts."""
    path = folder / "captions_val2017.json"
    try:
        annotations = json.loads(_text(path))["annotations"]
        ordered = sorted(annotations, key=lambda item: (item["image_id"], item["id"]), reverse=True)
        first = {item["image_id"]: item["caption"].strip() for item in ordered}
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}, line {error.lineno}: {error.msg}") from error
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: not COCO's captions, {type(error).__name__} {error}") from error
    yield from (TaskPrompt(first[image], "coco") for image in sorted(first))


_READERS: dict[str, Callable[[Path], Iterator[TaskPrompt]]] = {
    "geneval": _geneval,
    "t2i_compbench": _t2i_compbench,
    "parti": _parti,
    "drawbench": _drawbench,
    "coco_val": _coco_val,
}
