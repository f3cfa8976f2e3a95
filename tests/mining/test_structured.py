from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from scene_truth import is_true_of

from softrepa_pipeline.mining.structured import RULES, CaptionEditor, lexicon
from softrepa_pipeline.shapes.captions import draw_captioned, word

COCO = Path("/work/shared/data/coco_captions/captions_val2017.json")
# A data set that uses every word that an edit may put in.
EVERYTHING = [
    *lexicon.GROUPS_OF,
    *lexicon.COLORS,
    *lexicon.NUMBERS,
    *lexicon.DIGITS,
    *(option for attribute in lexicon.ATTRIBUTES.values() for option in attribute.becomes),
    "left right above below over under underneath beneath next to near far from in front of behind on top of inside",
    "outside of up down back bottom sitting standing lying sleeping sits stands sit stand looking away at beside",
]
EDITOR = CaptionEditor(EVERYTHING)
REAL = [
    "A man in a red hat, to the left of two white horses",
    "Two dogs are sitting on a couch next to a woman.",
    "There is a cat in a box under a table",
    "A young woman holding an umbrella while an old man rides a bicycle.",
    "an orange cat and a black dog laying on a bed",
    "A bathroom with a sink, toilet and bathtub",
    "Three zebras look towards the camera in their habitat.",
]


def edits(caption: str, kind: str, *others: str) -> set[str]:
    return {edit.text for edit in EDITOR.edits(caption, others) if edit.kind == kind}


def only(caption: str, kind: str) -> str:
    (text,) = edits(caption, kind)
    return text


def test_a_number_grows_or_shrinks_by_one_with_its_noun_and_verb() -> None:
    assert only("a dog is asleep", "replace_number") == "two dogs are asleep"
    assert only("There is a cat that is black", "replace_number") == "There are two cats that are black"
    assert only("An orange cat sits in the sun.", "replace_number") == "Two orange cats sit in the sun."
    assert only("One child with a kite-tail", "replace_number") == "Two children with a kite-tail"
    assert only("Two men are smiling", "replace_number") in {"One man is smiling", "Three men are smiling"}
    assert only("three cats asleep", "replace_number") in {"two cats asleep", "four cats asleep"}
    assert only("a herd of 4 sheep", "replace_number") in {"a herd of 3 sheep", "a herd of 5 sheep"}
    assert only("eight kites in the sky", "replace_number") == "four kites in the sky"


def test_two_become_one_only_where_nothing_else_would_have_to_change() -> None:
    assert only("Two knives lie there", "replace_number") in {"One knife lies there", "Three knives lie there"}
    assert only("two women with their dogs", "replace_number") == "three women with their dogs"
    assert only("the two buses", "replace_number") == "the three buses"
    assert "a dog" not in edits("two dogs", "replace_number"), "of two dogs, a dog is true"


@pytest.mark.parametrize(
    "caption",
    [
        "A man and woman asleep",  # the article is shared
        "A dog with its tongue out",  # a pronoun would have to follow
        "as big as half a pizza",
        "It is a dog",
        "A man in green sweater",
        "A skier in motion carves turns",  # a verb that is not known
        "A bedroom and a kitchen",
        "two-story house, one-way street, 4x4, 2nd base",
        "ten years old at two thirty",
        "a two way street",
        "a couple of trees",
    ],
)
def test_numbers_are_left_alone_where_grammar_or_meaning_is_not_certain(caption: str) -> None:
    assert edits(caption, "replace_number") == set()


def test_colours_become_others_with_their_articles() -> None:
    for text in edits("An orange umbrella", "replace_colour"):
        color = text.split()[1]
        assert color in lexicon.OTHER_COLORS["orange"]
        assert text == f"A {color} umbrella"
    assert edits("A black and white cat", "replace_colour") != set()
    assert all("black and black" not in text for text in edits("A black and white cat", "replace_colour"))
    assert edits("the wall is blue", "replace_colour") != set()


@pytest.mark.parametrize(
    "caption",
    [
        "a glass of orange juice",
        "a slice of orange on top",
        "black and white photo of a street",
        "a black and white picture",
        "in black and white",
        "The White House",
        "a Red Sox game",
        "White House Lawn",
        "a black man and a white woman",
        "a blue-eyed red-haired doll",
        "greenhouse, blackboard",
    ],
)
def test_colours_that_are_no_colours_of_things_stay(caption: str) -> None:
    assert edits(caption, "replace_colour") == set()


def test_attributes_become_their_opposites() -> None:
    assert only("A large dog", "replace_attribute") == "A small dog"
    assert only("an old man", "replace_attribute") == "a young man"
    assert only("a dark blue wall", "replace_attribute") in {"a light blue wall", "a bright blue wall"}
    assert only("an open door", "replace_attribute") == "a closed door"
    assert only("a shape on a light background", "replace_attribute") == "a shape on a dark background"
    assert edits("a ten years old boy", "replace_attribute") == set()
    assert edits("an old fashioned phone", "replace_attribute") == set()
    assert edits("a traffic light", "replace_attribute") == set()
    assert edits("a small child", "replace_attribute") == set()


def test_objects_become_others_of_their_kind_that_are_not_there() -> None:
    for text in edits("two dogs and a cat", "replace_object"):
        nouns = {lexicon.SINGULAR_OF.get(noun, noun) for noun in re.findall(r"\w+", text)} & lexicon.GROUPS_OF.keys()
        assert len(nouns) == 2
        assert all("animal" in lexicon.GROUPS_OF[noun] for noun in nouns)
    assert only("a woman on the way", "replace_object") == "a man on the way"
    assert only("A man with his umbrella", "replace_object") == "A woman with her umbrella"
    assert only("a girl by herself with her doll", "replace_object") == "a boy by himself with his doll"
    assert edits("a man and a woman", "replace_object") == set(), "both are there"
    assert edits("a person", "replace_object") == set(), "a person may be a man"
    assert edits("a hot dog", "replace_object").isdisjoint({"a hot cat", "a hot horse"})


@pytest.mark.parametrize(
    "caption",
    [
        "a bus stop",
        "dog food",
        "a table with a cup",
        "a toilet seat",
        "a neck tie",
        "a bat and a ball",
        "a hot dog stand",
    ],
)
def test_compounds_and_what_may_stand_unnamed_are_not_replaced(caption: str) -> None:
    assert edits(caption, "replace_object") == set()


def test_synonyms_never_replace_each_other() -> None:
    assert edits("a cat on a couch", "replace_object").isdisjoint({"a cat on a sofa", "a kitten on a couch"})
    for noun, groups in lexicon.GROUPS_OF.items():
        for group in groups:
            assert lexicon.synonyms(noun).isdisjoint(lexicon.others_of_kind(noun, group))


def test_relations_are_turned_around() -> None:
    assert only("a cup to the left of a bowl", "replace_relation") == "a cup to the right of a bowl"
    assert only("a cat in front of a tv", "replace_relation") == "a cat behind a tv"
    assert only("a clock above the door", "replace_relation") in {"a clock below the door", "a clock under the door"}
    assert only("a dog on a bed", "replace_relation") in {"a dog under a bed", "a dog underneath a bed"}
    assert only("a man is sitting", "replace_relation") == "a man is standing"
    assert only("two people next to a car", "replace_relation") == "two people far from a car"
    assert edits("a vase sitting on the floor", "replace_relation") == set(), "a vase that sits stands"
    assert edits("what is left over, all over the world, right now", "replace_relation") == set()
    assert edits("a man talking on a phone", "replace_relation") == set()


def test_attributes_and_numbers_of_two_things_change_places() -> None:
    assert only("A black dog and a white cat", "swap_attribute") == "A white dog and a black cat"
    assert only("an orange cat on a blue bed", "swap_attribute") == "a blue cat on an orange bed"
    assert only("a circle that is red above a blue square", "swap_attribute") == (
        "a circle that is blue above a red square"
    )
    assert only("Two dogs and three cats", "swap_attribute") == "Three dogs and two cats"
    assert only("two monitors and an apple", "swap_attribute") == "a monitor and two apples"
    assert only("a small cup and a large plate", "swap_attribute") == "a large cup and a small plate"
    assert edits("a red car and a blue car", "swap_attribute") == set(), "that is the same"
    assert edits("a small dog and a little cat", "swap_attribute") == set()
    assert edits("a black cat beside a black and white dog", "swap_attribute") == set()


def test_two_things_change_places_where_that_contradicts() -> None:
    assert only("A man riding a horse", "swap_object") == "A horse riding a man"
    assert only("Two cups on the red table", "swap_object") == "The red table on two cups"
    assert only("a man wearing red gloves beside a woman", "swap_object") == "a woman wearing red gloves beside a man"
    for caption in ("a cat and a dog", "a cat next to a dog", "a man with a woman", "a man sitting in front of a cake"):
        assert edits(caption, "swap_object") == set()


def test_what_other_captions_of_the_image_say_is_not_put_in() -> None:
    assert edits("a dog", "replace_number", "two puppies") == set()
    assert edits("a man is sitting", "replace_relation", "a man is standing") == set()
    options = {
        text.split()[1] for i in range(40) for text in edits(f"a dog and thing {i}", "replace_object", "cats too")
    }
    assert "cat" not in options
    assert len(options) > 3


def test_only_words_of_the_data_set_are_put_in() -> None:
    editor = CaptionEditor(["two red cups left of a blue box", "three cups", "right"])
    made = editor.edits("two red cups left of a blue box")
    assert [edit.kind for edit in made] == [
        *("replace_number", "replace_colour", "replace_relation", "swap_attribute", "swap_object"),
    ]
    known = {"two", "three", "red", "blue", "cups", "cup", "left", "right", "of", "a", "box", "boxes"}
    assert all(known.issuperset(edit.text.split()) for edit in made)
    assert CaptionEditor(["a small dog"]).edits("a small dog") == []


@pytest.mark.parametrize(
    "caption", ["", " ", "…", "日本の猫", "a\u00a0café, naïve « été »", "A" * 5000, "a dog " * 500]
)
def test_any_text_is_accepted(caption: str) -> None:
    for edit in EDITOR.edits(caption):
        assert edit.text != caption


def _wrong_articles(text: str) -> int:
    pairs = re.findall(r"\b(an?)\s+([a-z])(?!ni|se|ne|ur)", text.lower())
    return sum((article == "an") != (letter in "aeiou") for article, letter in pairs if letter not in "h8")


def _assert_well_formed(editor: CaptionEditor, caption: str, others: list[str]) -> int:
    made = editor.edits(caption, others)
    assert made == editor.edits(caption, others)
    assert len({edit.text for edit in made}) == len(made)
    for edit in made:
        assert edit.kind in RULES
        assert edit.text != caption
        assert edit.text not in others
        assert edit.text.count("  ") <= caption.count("  ")
        assert edit.text[:1].isupper() == caption[:1].isupper()
        assert edit.text[-1:] == caption[-1:] or edit.text[-1].isalnum()
        assert re.sub(r"[\w'’ -]", "", edit.text) == re.sub(r"[\w'’ -]", "", caption), "punctuation stays"
        assert _wrong_articles(edit.text) <= _wrong_articles(caption)
    return len(made)


def test_edits_differ_are_repeatable_and_keep_spaces_capitals_and_punctuation() -> None:
    rng = np.random.default_rng(0)
    determiners = ["a", "an", "the", "two", "Three", "A", "some", "his", ""]
    modifiers = ["red", "orange", "black and white", "small", "old", "one-way", "café", "unknown", ""]
    nouns = [*lexicon.GROUPS_OF, *lexicon.SINGULAR_OF]
    links = [
        "and",
        "on",
        "next to",
        "riding",
        "is",
        "are",
        "that is",
        ",",
        ".",
        "holding",
        "while",
        "in front of",
        "with",
    ]
    made = 0
    for _ in range(400):
        parts = [
            str(rng.choice(part)) for _ in range(rng.integers(1, 5)) for part in (determiners, modifiers, nouns, links)
        ]
        made += _assert_well_formed(EDITOR, " ".join(part for part in parts if part), REAL)
    assert made > 400


@pytest.mark.skipif(not COCO.exists(), reason="COCO's captions are not here")
def test_most_real_captions_have_edits_and_all_are_well_formed() -> None:
    annotations = json.loads(COCO.read_text())["annotations"][:1000]
    captions_of: dict[int, list[str]] = {}
    for annotation in annotations:
        captions_of.setdefault(annotation["image_id"], []).append(annotation["caption"])
    editor = CaptionEditor(annotation["caption"] for annotation in annotations)
    counts = [_assert_well_formed(editor, caption, own) for own in captions_of.values() for caption in own]
    assert np.mean(np.array(counts) > 0) > 0.8


def test_edits_of_the_embedded_world_are_false_of_their_scenes() -> None:
    rng = np.random.default_rng(0)
    items = [draw_captioned("train", 0.0, rng) for _ in range(300)]
    own = [[item.caption, *(word(item.claim, rng) for _ in range(2))] for item in items]
    editor = CaptionEditor(caption for captions in own for caption in captions)
    kinds, num_true = [], 0
    for item, captions in zip(items, own, strict=True):
        assert all(is_true_of(caption, item.scene) for caption in captions)
        for edit in (edit for caption in captions for edit in editor.edits(caption, captions)):
            kinds.append(edit.kind)
            num_true += is_true_of(edit.text, item.scene)
    assert num_true < 0.01 * len(kinds)
    assert set(kinds) == set(RULES)
    assert all(kinds.count(kind) > 50 for kind in RULES)
