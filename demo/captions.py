"""What the drawings are called: concepts, their names, tags and category nouns, and captions.

A *concept* is one emoji whatever its style or skin tone ("dog face"). Its names and tags come from
`emojibase-data` and `emojilib` (both MIT); the category nouns are the table in this file.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

TEMPLATES = (
    "{}",
    "{}",
    "a {}",
    "a {}",
    "a photo of a {}",
    "an emoji of a {}",
    "a picture of a {}",
    "an icon of a {}",
    "a drawing of a {}",
    "an illustration of a {}",
    "an image of a {}",
    "a photo of the {}",
)

# Subgroup of the emoji standard -> category nouns, the broadest first.
_CATEGORIES: dict[str, tuple[str, ...]] = {
    "cat-face": ("face", "cat", "animal"),
    "monkey-face": ("animal", "monkey"),
    "animal-mammal": ("animal", "mammal"),
    "animal-bird": ("animal", "bird"),
    "animal-amphibian": ("animal", "amphibian"),
    "animal-reptile": ("animal", "reptile"),
    "animal-marine": ("animal", "sea animal"),
    "animal-bug": ("animal", "insect", "bug"),
    "plant-flower": ("plant", "flower"),
    "plant-other": ("plant",),
    "food-fruit": ("food", "fruit"),
    "food-vegetable": ("food", "vegetable"),
    "food-prepared": ("food", "dish", "meal"),
    "food-asian": ("food", "asian food", "dish"),
    "food-sweet": ("food", "dessert", "sweet"),
    "drink": ("drink", "beverage"),
    "dishware": ("dishware", "kitchenware"),
    "place-geographic": ("landscape", "nature"),
    "place-building": ("building",),
    "place-religious": ("building", "religious building"),
    "place-other": ("place",),
    "place-map": ("map",),
    "transport-ground": ("vehicle", "transport"),
    "transport-water": ("vehicle", "boat", "ship"),
    "transport-air": ("vehicle", "aircraft"),
    "time": ("clock", "time"),
    "sky-weather": ("weather", "sky"),
    "event": ("celebration", "event"),
    "award-medal": ("award",),
    "sport": ("sport", "sports equipment"),
    "game": ("game", "toy"),
    "arts-crafts": ("art",),
    "clothing": ("clothing", "clothes"),
    "sound": ("sound",),
    "music": ("music",),
    "musical-instrument": ("musical instrument", "instrument"),
    "phone": ("phone", "electronic device"),
    "computer": ("computer", "electronic device"),
    "light-video": ("light or camera", "electronic device"),
    "book-paper": ("book or paper", "document"),
    "money": ("money",),
    "mail": ("mail",),
    "writing": ("writing tool",),
    "office": ("office supply",),
    "lock": ("lock or key",),
    "tool": ("tool",),
    "science": ("science equipment",),
    "medical": ("medical equipment",),
    "household": ("household object",),
    "other-object": ("object",),
    "transport-sign": ("sign", "symbol"),
    "warning": ("sign", "warning sign", "symbol"),
    "arrow": ("symbol", "arrow"),
    "religion": ("symbol", "religious symbol"),
    "zodiac": ("symbol", "zodiac sign"),
    "av-symbol": ("symbol", "button"),
    "gender": ("symbol",),
    "math": ("symbol", "math symbol"),
    "punctuation": ("symbol", "punctuation"),
    "currency": ("symbol",),
    "other-symbol": ("symbol",),
    "keycap": ("symbol", "keycap", "number"),
    "alphanum": ("symbol", "letters"),
    "geometric": ("shape", "geometric shape"),
    "flag": ("flag",),
    "country-flag": ("flag", "country flag"),
    "subdivision-flag": ("flag",),
    "heart": ("heart", "symbol"),
    "emotion": ("symbol", "emotion"),
    "face-costume": ("face", "character"),
    "body-parts": ("body part",),
    "hands": ("hand",),
    "hand-prop": ("hand",),
    "hand-fingers-open": ("hand",),
    "hand-fingers-partial": ("hand",),
    "hand-single-finger": ("hand",),
    "hand-fingers-closed": ("hand",),
    "family": ("person", "people", "family"),
    "person-sport": ("person", "athlete"),
}
# Filed under transport in the standard, but not vehicles.
_NOT_VEHICLES = frozenset(
    [
        "fuel pump",
        "wheel",
        "police car light",
        "horizontal traffic light",
        "vertical traffic light",
        "stop sign",
        "construction",
        "bus stop",
        "motorway",
        "railway track",
        "oil drum",
        "anchor",
        "ring buoy",
        "seat",
        "manual wheelchair",
        "motorized wheelchair",
        "roller skate",
    ]
)
# Filed under animals in the standard, but only part or trace of one.
_NOT_ANIMALS = frozenset({"paw prints", "feather", "spider web"})
# Groups whose last word says what kind of thing it is ("racing car" is a car).
_HEAD_GROUPS = frozenset({"animals-nature", "food-drink", "travel-places", "activities", "objects"})
_SHORTCODE_SETS = ("github", "iamcal", "joypixels", "emojibase")


@dataclass(frozen=True, slots=True)
class Concept:
    """One emoji: `names` (the first is its label), `tags` and `categories` all describe it."""

    label: str
    group: str
    subgroup: str
    names: tuple[str, ...]
    tags: tuple[str, ...]
    categories: tuple[str, ...]

    @property
    def phrases(self) -> tuple[str, ...]:
        """Every phrase that is true of a drawing of this concept, each once."""
        return tuple(dict.fromkeys(self.names + self.tags + self.categories))


@dataclass(frozen=True, slots=True)
class Catalogue:
    """All concepts by label, and how a code point or an icon's name leads to one."""

    concepts: dict[str, Concept]
    by_code: dict[str, str]
    by_toned_code: dict[str, str]
    by_name: dict[str, str]


def code(hexcode: str) -> str:
    """`1F415-FE0F` -> `1f415`: lower case, without variation selectors."""
    return "-".join(part for part in hexcode.lower().split("-") if part != "fe0f")


def squash(name: str) -> str:
    """Reduce a name to letters and digits, for looking it up."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


def plain(label: str) -> str:
    """Spell a label as people type it: lower case, straight apostrophes, no quotation marks."""
    text = label.lower().replace("\u2019", "'").replace("\u201c", "").replace("\u201d", "")
    return text.replace("flag: ", "flag of ")


def article(text: str) -> str:
    """Mind the vowel: `a apple` -> `an apple`."""
    return re.sub(r"\ba ([aeiou])", r"an \1", text)


def read_catalogue(packages: Path) -> Catalogue:
    """Read the concepts from the unpacked `emojibase-data` and `emojilib` in `packages`."""
    data = packages / "emojibase-data"
    meta = _load(data / "meta" / "groups.json")
    entries = [e for e in _load(data / "en" / "data.json") if e.get("group") is not None]
    entries = [e for e in entries if meta["groups"][str(e["group"])] != "component"]
    keywords = _load(packages / "emojilib" / "dist" / "emoji-en-US.json")
    by_code = {code(e["hexcode"]): e["label"] for e in entries}
    by_toned_code = {
        code(skin["hexcode"]): e["label"] for e in entries for skin in e.get("skins", [])
    }
    shortcodes = _read_shortcodes(data / "en" / "shortcodes", by_code)
    concepts: dict[str, Concept] = {}
    for entry in entries:
        label = entry["label"]
        emoji = entry["emoji"]
        extra = keywords.get(emoji) or keywords.get(emoji.replace("\ufe0f", "")) or []
        group = meta["groups"][str(entry["group"])]
        subgroup = meta["subgroups"][str(entry["subgroup"])]
        concepts[label] = _concept(
            label, group, subgroup, [*entry.get("tags", []), *extra], shortcodes[label]
        )
    concepts = _with_kinds(concepts)
    by_name = {squash(label): label for label in concepts}
    for label, names in shortcodes.items():
        for name in names:
            by_name.setdefault(squash(name), label)
    return Catalogue(concepts, by_code, by_toned_code, by_name)


def _load(path: Path) -> dict:  # type: ignore[type-arg]
    with path.open(encoding="utf-8") as file:
        return json.load(file)  # type: ignore[no-any-return]


def _read_shortcodes(folder: Path, by_code: dict[str, str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = defaultdict(list)
    for name in _SHORTCODE_SETS:
        for hexcode, codes in _load(folder / f"{name}.json").items():
            label = by_code.get(code(hexcode))
            if label is None:
                continue
            for text in [codes] if isinstance(codes, str) else codes:
                spoken = text.replace("_", " ").replace("-", " ").lower().strip()
                if re.fullmatch(r"[a-z][a-z ]{2,30}", spoken) and spoken not in found[label]:
                    found[label].append(spoken)
    return found


def _concept(
    label: str, group: str, subgroup: str, tags: Iterable[str], alternatives: Iterable[str]
) -> Concept:
    name = plain(label)
    names = [name, *alternatives]
    head = _head(name) if group in _HEAD_GROUPS else None
    if head:
        names.append(head)
    spoken = [plain(tag.replace("_", " ")) for tag in tags]
    spoken = [tag for tag in spoken if re.fullmatch(r"[a-z][a-z '&!-]{1,30}", tag)]
    return Concept(
        label=label,
        group=group,
        subgroup=subgroup,
        names=tuple(dict.fromkeys(names)),
        tags=tuple(dict.fromkeys(spoken)),
        categories=_categories(label, subgroup),
    )


def _with_kinds(concepts: dict[str, Concept]) -> dict[str, Concept]:
    """Count as category nouns the tags that are names of a neighbour: a locomotive is a train."""
    names: dict[str, set[str]] = defaultdict(set)
    for concept in concepts.values():
        if concept.group in _HEAD_GROUPS:
            names[concept.subgroup].update(concept.names)
    out = {}
    for label, concept in concepts.items():
        shared = [tag for tag in concept.tags if tag in names[concept.subgroup] - {plain(label)}]
        kinds = tuple(dict.fromkeys((*concept.categories, *shared)))
        out[label] = replace(concept, categories=kinds)
    return out


def _head(name: str) -> str | None:
    """Find the noun of a label: `racing car` -> `car`, `dog face` -> `dog`."""
    first = re.split(r" (?:with|in|of|on|and|at|behind|over) ", name)[0]
    words = [w for w in re.findall(r"[a-z][a-z'-]+", first) if w not in ("face", "symbol")]
    return words[-1] if words else None


def _categories(label: str, subgroup: str) -> tuple[str, ...]:
    if label in _NOT_VEHICLES:
        return ("object", "transport")
    if label in _NOT_ANIMALS:
        return ("object", "nature")
    if subgroup in _CATEGORIES:
        return _CATEGORIES[subgroup]
    if subgroup.startswith("face-"):
        return ("face", "smiley face", "smiley", "emotion")
    if subgroup.startswith("person"):
        return ("person", "people")
    return ("object",)
