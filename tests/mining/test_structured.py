from __future__ import annotations

from softrepa_pipeline.mining.structured import CaptionEditor


def _edits(caption: str, *others: str) -> dict[str, set[str]]:
    """The edits of a caption by kind, in a data set that also has `others`."""
    made = CaptionEditor([caption, *others]).edits(caption)
    return {kind: {edit.text for edit in made if edit.kind == kind} for kind in {edit.kind for edit in made}}


def test_numbers_and_sides_and_colours_are_replaced_and_swapped() -> None:
    made = _edits("two red cups left of a blue box", "three cups", "right")
    assert made["replace_number"] == {"three red cups left of a blue box", "two red cups left of two blue boxes"}
    assert made["replace_relation"] == {"two red cups right of a blue box"}
    assert made["replace_colour"] == {"two blue cups left of a blue box", "two red cups left of a red box"}
    assert made["swap_attribute"] == {"two blue cups left of a red box"}
    assert made["swap_object"] == {"a blue box left of two red cups"}
