from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from softrepa_pipeline.config import build
from softrepa_pipeline.stage import Stage, run_stage, source_digest


@dataclass(frozen=True)
class Inner:
    value: float
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Outer:
    inner: Inner
    count: int
    label: str | None = None


def test_build_nests_and_converts() -> None:
    outer = build(Outer, {"inner": {"value": 1, "names": ["a", "b"]}, "count": 3, "label": None}, "outer")
    assert outer == Outer(Inner(1.0, ("a", "b")), 3)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"inner": {"value": 1}, "cuont": 3}, r"unknown parameter outer\.cuont; did you mean outer\.count\?"),
        ({"inner": {"valu": 1}, "count": 3}, r"unknown parameter outer\.inner\.valu; did you mean outer\.inner\.value"),
        ({"inner": {"value": 1}}, r"parameter outer\.count is missing"),
        ({"inner": {"value": "x"}, "count": 3}, r"outer\.inner\.value must be of type float, not 'x'"),
        ({"inner": {"value": 1}, "count": True}, r"outer\.count must be of type int, not True"),
    ],
)
def test_build_names_what_is_wrong(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(Outer, values, "outer")


def stage(folder: Path, **changes: Any) -> Stage:
    values: dict[str, Any] = {"inputs": {"pairs": "abc"}, "parameters": Inner(1.0), "code": ("objectives",)}
    return Stage("mine", folder, **(values | changes))


def test_a_stage_runs_once_until_something_it_depends_on_changes(tmp_path: Path) -> None:
    calls = []

    def compute() -> dict[str, Any]:
        calls.append(1)
        return {"n": len(calls)}

    assert run_stage(stage(tmp_path), compute) == {"n": 1, "skipped": False}
    assert run_stage(stage(tmp_path), compute) == {"n": 1, "skipped": True}
    for changed in (
        stage(tmp_path, inputs={"pairs": "abd"}),
        stage(tmp_path, parameters=Inner(2.0)),
        stage(tmp_path, code=("objectives", "soft_tokens")),
    ):
        assert run_stage(changed, compute)["skipped"] is False
    assert run_stage(changed, compute, force=True)["skipped"] is False


def test_a_failed_stage_is_not_taken_for_finished(tmp_path: Path) -> None:
    def fail() -> dict[str, Any]:
        raise RuntimeError("in the middle")

    run_stage(stage(tmp_path), lambda: {"n": 1})
    with pytest.raises(RuntimeError):
        run_stage(stage(tmp_path), fail, force=True)
    assert run_stage(stage(tmp_path), lambda: {"n": 2}) == {"n": 2, "skipped": False}


def test_source_digest_follows_content(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one")
    first = source_digest(str(tmp_path))
    assert source_digest(str(tmp_path)) == first
    (tmp_path / "a.txt").write_text("two")
    assert source_digest(str(tmp_path)) != first
    assert source_digest("org/model", "main") != source_digest("org/model", "v2")
