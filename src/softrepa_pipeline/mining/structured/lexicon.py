"""The words that the rules know: what exists beside what, what excludes what, and how it is inflected.

Nouns stand in groups of the same kind. A group is a list of sets; words of one set may name the same thing, so they
never replace each other, while words of different sets do. Behind a bar stand words that are understood but never put
into a caption. COCO's categories and the commonest further nouns of its captions are here.
"""

from __future__ import annotations

_GROUPS: dict[str, str] = {
    "adult": "man|guy gentleman, woman|lady",
    "child": "boy, girl",
    "athlete": "skier, surfer, skateboarder, snowboarder",
    "person": "|person child kid baby toddler player rider batter adult skater tennis_player baseball_player",
    "animal": "cat|kitten kitty, dog|puppy, horse|pony foal, sheep|lamb goat, cow|calf bull, elephant, zebra, giraffe,"
    "bird|duck goose seagull pigeon parrot owl chicken swan, bear|polar_bear cub, monkey|ape, rabbit|bunny, deer",
    "vehicle": "car|taxi cab van suv, truck|van suv pickup_truck fire_truck, bus|trolley double_decker_bus,"
    "train|trolley tram subway locomotive, motorcycle|motorbike bike scooter, bicycle|bike,"
    "airplane plane|jet airliner, boat|ship sailboat canoe ferry",
    "room": "kitchen, bathroom|restroom, bedroom|hotel_room, living_room|room, office",
    "outdoors": "beach|shore, street|road highway, field|pasture meadow, forest|woods",
    "furniture": "chair|seat stool, couch sofa|seat, bed, table|desk dining_table counter coffee_table,"
    "desk|table counter, bench|seat",
    "bathroom": "sink|bathroom_sink, toilet|urinal, bathtub|tub",
    "appliance": "refrigerator|fridge, oven|stove, microwave|microwave_oven, toaster",
    "screen": "laptop|laptop_computer computer, television tv|monitor screen computer_monitor,"
    "phone cell_phone|cellphone smartphone",
    "dish": "cup|mug glass coffee_cup, bottle|wine_bottle, bowl|dish, plate|dish, glass|cup wine_glass, vase",
    "cutlery": "fork, knife, spoon",
    "meal": "pizza, sandwich|hamburger, hot_dog hotdog, donut doughnut|bagel, cake|birthday_cake",
    "fruit": "banana, apple, orange, carrot, strawberry, lemon",
    "gear": "skateboard|skate_board board, snowboard|snow_board board, surfboard|surf_board board, kite, frisbee|disc",
    "racket": "tennis_racket racket|racquet tennis_racquet, baseball_bat|bat",
    "luggage": "backpack|bag, suitcase|bag, umbrella, purse|handbag bag",
    "clothing": "hat|cap helmet, tie|necktie, scarf",
    "street furniture": "fire_hydrant hydrant, stop_sign, parking_meter, traffic_light|stoplight, street_sign",
    "container": "box|crate, basket, bag|sack paper_bag plastic_bag",
    "toy": "teddy_bear|stuffed_bear, doll",
    "shape": "circle disc, square box, triangle",
    "thing": "|statue clock ball book pillow lamp flower plant blanket keyboard computer_mouse remote camera toothbrush"
    " tray sign pot wagon carriage clock_tower computer animal stuffed_animal sculpture tower toy",
    "scenery": "|tree building house wall window bridge mirror fence wave door hill mountain river lake pond branch"
    " rock stand",
}
_SUBSTANCES: dict[str, str] = {
    "sport": "tennis, baseball, soccer|football, basketball, volleyball, golf, frisbee",
    "food": "broccoli, rice, pasta|spaghetti, salad, soup, bread|toast",
    "ground": "snow|ice, grass, sand|dirt, water",
}
# Where one of these stands another may well stand unnamed, so the noun is replaced only where something is placed or
# done there: a cat in a sink is not in a toilet, while a bathroom with a sink may have one.
HOUSEHOLD = {
    *("furniture", "bathroom", "appliance", "screen", "dish", "cutlery", "container", "luggage", "clothing"),
    *("fruit", "food", "racket", "outdoors", "ground", "toy"),
}
UNCOUNTED = {"room", "outdoors", "scenery", "bathroom", "appliance", *_SUBSTANCES}
PEOPLE = {"adult", "child", "athlete", "person"}
AGENTS = {*PEOPLE, "animal"}
ADULTS = {"man", "woman", "person", "lady", "guy", "gentleman", "adult"}
_IRREGULAR = {
    **{"man": "men", "woman": "women", "person": "people", "child": "children", "gentleman": "gentlemen"},
    **{"sheep": "sheep", "deer": "deer", "knife": "knives", "goose": "geese", "calf": "calves", "bus": "buses"},
    **{"computer_mouse": "computer mice", "scarf": "scarves", "loaf": "loaves"},
}
# Plurals that mean something else.
_NO_PLURALS = {"glasses", "woods", "boxes of", "waters", "streets sign"}


def plural(noun: str) -> str:
    """The plural of a noun of the lexicon."""
    key = noun.replace(" ", "_")
    if key in _IRREGULAR:
        return _IRREGULAR[key]
    if noun.endswith(("s", "x", "ch", "sh")):
        return noun + "es"
    if noun.endswith("y") and noun[-2] not in "aeiou":
        return noun[:-1] + "ies"
    return noun + "s"


def _read(groups: dict[str, str]) -> dict[str, list[tuple[list[str], list[str]]]]:
    """For each group its sets, each as (words to put in, all words)."""
    return {
        group: [
            (targets.split(), [*targets.split(), *others.split()])
            for targets, _, others in (part.strip().partition("|") for part in text.split(","))
        ]
        for group, text in groups.items()
    }


def _spaced(word: str) -> str:
    return word.replace("_", " ")


_SETS = _read({**_GROUPS, **_SUBSTANCES})
GROUPS_OF: dict[str, list[str]] = {}
for _group, _sets in _SETS.items():
    for _, _words in _sets:
        for _word in _words:
            if _group not in GROUPS_OF.setdefault(_spaced(_word), []):
                GROUPS_OF[_spaced(_word)].append(_group)
SINGULAR_OF = {plural(noun): noun for noun in GROUPS_OF if plural(noun) not in _NO_PLURALS}


def others_of_kind(noun: str, group: str) -> list[str]:
    """The nouns of a group that cannot name the same thing as `noun`."""
    same = synonyms(noun)
    return [other for targets, _ in _SETS[group] for other in map(_spaced, targets) if other not in same]


def synonyms(noun: str) -> set[str]:
    """All nouns that may name the same thing, itself among them."""
    sets = [words for group in GROUPS_OF[noun] for _, words in _SETS[group]]
    return {noun, *(_spaced(word) for words in sets if noun.replace(" ", "_") in words for word in words)}


# Traps: nouns that end in a noun of the lexicon but are none of its kind, or start with one.
COMPOUNDS = {
    *("bus stop", "bus stops", "train station", "train tracks", "car park", "guinea pig", "sea lion", "hot air"),
    *("bean bag", "bean bags", "sleeping bag", "punching bag", "book bag", "road sign", "sun hat", "home plate"),
    *("license plate", "license plates", "toilet seat", "toilet paper", "cat fish", "toy car", "race horse"),
    *("bed room", "dining room", "waiting room", "rest room", "locker room", "bath tub", "hot tub", "paper plate"),
    *("rocking horse", "rocking chair", "wheel chair", "high chair", "flower bed", "truck bed", "pool table"),
}

COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white", "gray", "grey")
# Colours that people call by either name, and shades that are only understood.
_LIKE = {
    "red": "orange pink brown",
    "orange": "red yellow brown",
    "yellow": "orange",
    "green": "",
    "blue": "purple",
    "purple": "blue pink",
    "pink": "red purple",
    "brown": "red orange black gray grey",
    "black": "brown gray grey",
    "white": "gray grey",
    "gray": "grey black white brown blue",
    "grey": "gray black white brown blue",
    "tan": "brown orange yellow white gray grey",
    "beige": "brown yellow white gray grey",
    "silver": "gray grey white",
    "gold": "yellow orange brown",
    "golden": "yellow orange brown",
    "maroon": "red brown purple",
    "teal": "green blue",
    "blonde": "yellow white brown",
}
ALL_COLORS = set(_LIKE)
OTHER_COLORS = {color: [c for c in COLORS if c != color and c not in _LIKE[color].split()] for color in _LIKE}
# After these a colour belongs to a name, or the picture is meant.
NOT_COLORED = {
    *("juice", "house", "slices", "slice", "wedges", "peel", "peels", "tree", "trees", "sox", "bull", "wine", "caps"),
    *("board", "water", "photo", "photograph", "picture", "image", "photography", "tv", "television", "beans", "tea"),
    *("friday", "eye", "pepper", "peppers", "olives", "rice", "onion", "onions", "belt", "out", "and", "lettuce"),
    *("shot", "pic", "snapshot", "film", "portrait", "print", "scene", "view", "section", "halves", "sauce", "jay"),
    *("people", "american", "vegetables", "vegetable", "veggies", "meat", "bread", "walls-and", "sugar"),
}

NUMBERS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
DIGITS = tuple(str(number) for number in range(1, 11))
# A plural after these is no count of things.
NOT_COUNTED = {"years", "year", "minutes", "hours", "feet", "inches", "miles", "dollars", "times", "days", "oclock"}

# Attributes that exclude each other: (word, what replaces it, before which nouns or groups; any where none is named).
_PEOPLE_WORDS = "adult person"
ATTRIBUTES: dict[str, tuple[str, str]] = {
    "small": ("large big", ""),
    "large": ("small little", ""),
    "big": ("small little", ""),
    "huge": ("tiny small", ""),
    "giant": ("tiny small", ""),
    "tiny": ("huge large", ""),
    "little": ("large big", "!child !person"),
    "tall": ("short small", ""),
    "short": ("long tall", "hair sleeves skirt tower building giraffe man woman person tree"),
    "long": ("short", ""),
    "young": ("old elderly", "adult !child"),
    "younger": ("older", "adult"),
    "older": ("younger", "adult"),
    "elderly": ("young", "adult"),
    "old": ("young", "adult"),
    "wooden": ("metal plastic", ""),
    "metal": ("wooden plastic", ""),
    "plastic": ("wooden metal", ""),
    "brick": ("wooden", "wall building house"),
    "clean": ("dirty", "bathroom kitchen room toilet sink desk street bedroom plate office"),
    "dirty": ("clean", ""),
    "empty": ("full", "plate bowl glass cup bottle refrigerator suitcase basket box shelf"),
    "full": ("empty", "plate bowl glass cup bottle refrigerator suitcase basket box shelf"),
    "dark": ("light bright", "background colors room hair sky"),
    "light": ("dark", "background colors hair"),
    "bright": ("dark", "colors room sky light"),
    "sunny": ("rainy cloudy", "day"),
    "cloudy": ("sunny", "day"),
    "rainy": ("sunny", "day"),
    "snowy": ("grassy", "field hill hillside area ground"),
    "grassy": ("snowy", "field hill hillside area ground park"),
    "wet": ("dry", "street road ground sidewalk pavement"),
    "dry": ("wet lush", "grass field ground"),
    "lush": ("dry", "field grass"),
    "male": ("female", ""),
    "female": ("male", ""),
    "open": ("closed", "door window laptop book umbrella refrigerator suitcase box oven"),
    "closed": ("open", "door window laptop book umbrella refrigerator suitcase box oven"),
    "crowded": ("empty deserted", "street beach room restaurant bus train park"),
    "busy": ("empty deserted", "street road highway intersection city"),
    "happy": ("sad", ""),
}
# Words before a noun that are neither replaced nor nouns.
MODIFIERS = {
    *("stuffed", "baby", "toy", "wild", "cute", "beautiful", "nice", "fluffy", "furry", "striped", "spotted", "adult"),
    *("single", "double", "modern", "vintage", "colorful", "wet", "parked", "other", "very", "lone", "asian", "pretty"),
    *("smiling", "sleeping", "sitting", "standing", "moving", "flying", "police", "passenger", "city", "real", "fake"),
}
# Attributes of one kind change places with each other.
ATTRIBUTE_KINDS = (
    ALL_COLORS,
    {"small", "large", "big", "huge", "giant", "tiny", "little"},
    {"tall", "short"},
    {"young", "old", "older", "younger", "elderly"},
    {"wooden", "metal", "plastic", "brick", "stone", "glass", "concrete"},
)

DETERMINERS = {"a", "an", "the", "this", "that", "his", "her", "their", "its", "another", "some", "several", "many"}
PLURAL_DETERMINERS = {"some", "several", "many", "these", "those", "various", "few", "multiple", "of"}
PREPOSITIONS = {
    *(
        "on",
        "in",
        "at",
        "with",
        "by",
        "near",
        "under",
        "over",
        "above",
        "below",
        "behind",
        "beside",
        "inside",
        "outside",
    ),
    *("of", "to", "from", "for", "into", "onto", "through", "across", "along", "against", "around", "between", "atop"),
    *("among", "down", "up", "off", "past", "toward", "towards", "next", "beneath", "underneath", "during", "without"),
    *("without", "after", "before", "about", "amongst", "alongside", "upon", "within"),
}
CONJUNCTIONS = {"and", "or", "while", "as", "where", "when", "but", "that", "which", "who", "because", "than", "whose"}
ADVERBS = {"together", "alone", "outdoors", "indoors", "nearby", "there", "here", "just", "all", "both", "also", "not"}
PARTICIPLES = {
    "seen",
    "made",
    "shown",
    "left",
    "held",
    "driven",
    "eaten",
    "cut",
    "set",
    "lit",
    "hung",
    "taken",
    "ready",
}
_REGULAR_VERBS = {
    *("sit", "stand", "walk", "run", "lie", "lay", "ride", "hold", "look", "eat", "play", "drive", "jump"),
    *("sleep", "wear", "pose", "rest", "swim", "graze", "drink", "pull", "hang", "hit", "swing", "throw"),
    *("wait", "smile", "lean", "get", "take", "use", "travel", "move", "make", "show", "appear", "seem"),
    *("come", "talk", "read", "prepare", "fill", "cover", "contain", "feature", "perform", "cut", "float"),
    *("roam", "work", "display", "sniff", "enjoy", "gather"),
}
# Third person singular and its plural.
VERBS = {
    **{"is": "are", "was": "were", "has": "have", "does": "do", "goes": "go", "flies": "fly", "carries": "carry"},
    **{verb + "s": verb for verb in _REGULAR_VERBS},
    **{"catches": "catch", "watches": "watch", "reaches": "reach", "crosses": "cross", "passes": "pass"},
}
PLURAL_VERBS = {plural_form: singular for singular, plural_form in VERBS.items()}
SINGULAR_PRONOUNS = {
    *("it", "its", "itself", "he", "his", "him", "himself", "she", "her", "hers", "herself", "it's", "he's", "she's"),
    *("alone", "another", "other", "each", "which", "there's"),
}
PLURAL_PRONOUNS = {
    *("they", "their", "them", "themselves", "each", "both", "together", "other", "others", "another", "various"),
    *("different", "between", "same", "line", "row", "apart", "one", "separate", "facing", "all", "who", "which"),
}
# -ing and -ed words after a noun that go with it into a compound.
NOT_PARTICIPLES = {
    *(
        "parking",
        "crossing",
        "racing",
        "sledding",
        "training",
        "building",
        "ring",
        "wing",
        "king",
        "string",
        "painting",
    ),
    *("clothing", "drawing", "ceiling", "railing", "wedding", "evening", "morning", "setting", "wing", "something"),
    *("bed", "shed", "sled", "shaped", "sized", "colored", "flavored", "seed", "weed", "red", "themed", "powered"),
    *(
        "faced",
        "headed",
        "haired",
        "eyed",
        "wheeled",
        "breed",
        "feed",
        "speed",
        "based",
        "drawing",
        "boarding",
        "thing",
    ),
    *("dressing", "icing", "frosting", "topping", "bedding", "seating", "landing", "wrapping"),
}
