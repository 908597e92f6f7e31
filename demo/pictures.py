"""Fetch the openly licensed drawings and render them.

    python demo/pictures.py --work=FOLDER

fetches each package of `SETS` at its exact version with `npm pack`, unpacks it under
FOLDER/packages, and renders every drawing whose concept is known into FOLDER/pictures.npy,
uint8[N, 96, 96, 4] (RGBA, straight alpha), with FOLDER/pictures.csv naming each row.
The held-out set is fetched (the archive and `heldout.py` draw on it) but never rendered here.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import re
import subprocess
import tarfile
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import resvg_py
from captions import Catalogue, code, read_catalogue, squash
from PIL import Image

SIDE = 96
"""Pixels along the side of a rendered drawing."""
HELD_OUT = "openmoji"
DEVELOPMENT = "emojione-v1"
PER_CONCEPT = 6
"""At most this many drawings of one concept from one set of icons."""


@dataclass(frozen=True, slots=True)
class PictureSet:
    """A package of drawings.

    `kind`: `emoji` (coloured, one drawing a concept), `mono` (emoji in one colour), `icons`
    (coloured, named freely), `mono-icons`, or `webp` (pictures named by code point).
    """

    name: str
    package: str
    version: str
    licence: str
    kind: str


SETS = (
    PictureSet("noto", "@iconify-json/noto", "1.2.9", "Apache-2.0", "emoji"),
    PictureSet("noto-v1", "@iconify-json/noto-v1", "1.2.5", "Apache-2.0", "emoji"),
    PictureSet("twemoji", "@iconify-json/twemoji", "1.2.5", "CC-BY-4.0", "emoji"),
    PictureSet("fluent-emoji", "@iconify-json/fluent-emoji", "1.2.7", "MIT", "emoji"),
    PictureSet("fluent-emoji-flat", "@iconify-json/fluent-emoji-flat", "1.2.6", "MIT", "emoji"),
    PictureSet("fluent-emoji-3d", "@lobehub/fluent-emoji-3d", "1.1.0", "MIT", "webp"),
    PictureSet("fxemoji", "@iconify-json/fxemoji", "1.2.2", "Apache-2.0", "emoji"),
    PictureSet("emojione", "@iconify-json/emojione", "1.2.3", "CC-BY-4.0", "emoji"),
    PictureSet(
        "streamline-emojis", "@iconify-json/streamline-emojis", "1.2.4", "CC-BY-4.0", "emoji"
    ),
    PictureSet(
        "fluent-emoji-high-contrast",
        "@iconify-json/fluent-emoji-high-contrast",
        "1.2.6",
        "MIT",
        "mono",
    ),
    PictureSet(
        "emojione-monotone", "@iconify-json/emojione-monotone", "1.2.1", "CC-BY-4.0", "mono"
    ),
    PictureSet("flat-color-icons", "@iconify-json/flat-color-icons", "1.2.3", "MIT", "icons"),
    PictureSet("streamline-color", "@iconify-json/streamline-color", "1.2.2", "CC-BY-4.0", "icons"),
    PictureSet(
        "streamline-flex-color",
        "@iconify-json/streamline-flex-color",
        "1.2.2",
        "CC-BY-4.0",
        "icons",
    ),
    PictureSet(
        "streamline-plump-color",
        "@iconify-json/streamline-plump-color",
        "1.2.2",
        "CC-BY-4.0",
        "icons",
    ),
    PictureSet(
        "streamline-ultimate-color",
        "@iconify-json/streamline-ultimate-color",
        "1.2.2",
        "CC-BY-4.0",
        "icons",
    ),
    PictureSet(
        "streamline-freehand-color",
        "@iconify-json/streamline-freehand-color",
        "1.2.2",
        "CC-BY-4.0",
        "icons",
    ),
    PictureSet(
        "streamline-kameleon-color",
        "@iconify-json/streamline-kameleon-color",
        "1.2.2",
        "CC-BY-4.0",
        "icons",
    ),
    PictureSet("icon-park", "@iconify-json/icon-park", "1.2.4", "Apache-2.0", "icons"),
    PictureSet("game-icons", "@iconify-json/game-icons", "1.2.4", "CC-BY-3.0", "mono-icons"),
    PictureSet("tabler", "@iconify-json/tabler", "1.2.41", "MIT", "mono-icons"),
    PictureSet("ph", "@iconify-json/ph", "1.2.2", "MIT", "mono-icons"),
    PictureSet("mdi", "@iconify-json/mdi", "1.2.3", "Apache-2.0", "mono-icons"),
    PictureSet("fa6-solid", "@iconify-json/fa6-solid", "1.2.4", "CC-BY-4.0", "mono-icons"),
    PictureSet("lucide", "@iconify-json/lucide", "1.2.137", "ISC", "mono-icons"),
    PictureSet(DEVELOPMENT, "@iconify-json/emojione-v1", "1.2.3", "CC-BY-SA-4.0", "emoji"),
    PictureSet(HELD_OUT, "@iconify-json/openmoji", "1.2.29", "CC-BY-SA-4.0", "emoji"),
)
WORDS = (("emojibase-data", "17.0.0"), ("emojilib", "4.0.3"))
"""Packages of names and keywords (MIT)."""

_ICON_GROUPS = frozenset({"animals-nature", "food-drink", "travel-places", "activities", "objects"})
# What icon sets call a thing, where that is not one of the concept's own names.
_ICON_NAMES = {
    "apple": "red apple",
    "foodapple": "red apple",
    "applewhole": "red apple",
    "home": "house",
    "plane": "airplane",
    "burger": "hamburger",
    "foodhamburger": "hamburger",
    "foodburger": "hamburger",
    "foodpizza": "pizza",
    "pizzaslice": "pizza",
    "bike": "bicycle",
    "bicyclebike": "bicycle",
    "sailing": "sailboat",
    "boat": "sailboat",
    "tree": "deciduous tree",
    "pinetree": "evergreen tree",
    "treepine": "evergreen tree",
    "treeevergreen": "evergreen tree",
    "flower": "blossom",
    "flowertulip": "tulip",
    "flowerlotus": "lotus",
    "guitaracoustic": "guitar",
    "guitarelectric": "guitar",
    "clock": "mantelpiece clock",
    "alarm": "alarm clock",
    "clockalarm": "alarm clock",
    "bookopen": "open book",
    "bookclosed": "closed book",
    "book": "closed book",
    "icecream": "soft ice cream",
    "glasses": "glasses",
    "carsports": "automobile",
    "carfront": "oncoming automobile",
    "boatsail": "sailboat",
    "fruitcherries": "cherries",
    "fruitgrapes": "grapes",
    "fruitpineapple": "pineapple",
    "fruitwatermelon": "watermelon",
    "duck": "duck",
    "eagle": "eagle",
    "ship": "ship",
    "cup": "teacup without handle",
    "coffee": "hot beverage",
    "beer": "beer mug",
    "shoesneaker": "running shoe",
    "sneaker": "running shoe",
    "tshirt": "t-shirt",
    "shirt": "t-shirt",
    "phone": "telephone receiver",
    "smartphone": "mobile phone",
    "laptop": "laptop",
    "lightbulb": "light bulb",
    "football": "american football",
    "soccer": "soccer ball",
    "basketball": "basketball",
    "moon": "crescent moon",
    "chair": "chair",
    "gift": "wrapped gift",
    "donut": "doughnut",
    "cake": "birthday cake",
    "castle": "castle",
}
# Names that in icon sets mean something else than in emoji (trade marks, user interface).
_ICON_TRAPS = frozenset(
    {
        "mdi:apple", "mdi:plex", "link", "key", "tab", "cool", "poop", "tool", "ring", "package",
        "memo", "watch", "mouse", "date", "chart", "label", "card", "search", "mute", "sound",
        "dash", "station", "stars", "sparkles", "fire", "cursor", "pin", "world", "map",
    }
)  # fmt: skip
_SUFFIX = re.compile(
    r"-(?:\d+|flat|duo|fill|filled|duotone|bold|thin|light|outline|outlined|variant|off-?set)$"
)
_PRIVATE = re.compile(r"(?:e[0-9a-f]|f[0-8])[0-9a-f]{2}")


@dataclass(frozen=True, slots=True)
class Drawing:
    """One picture to render: `body` is SVG text, or a path for a picture file."""

    set_name: str
    icon: str
    concept: str
    toned: bool
    mono: bool
    body: str


def folder_of(package: str) -> str:
    """Name the folder a package is unpacked in."""
    return package.removeprefix("@").replace("/", "-")


def fetch(packages: Path) -> None:
    """Fetch and unpack every package of `SETS` and `WORDS` that `packages` does not hold yet."""
    packages.mkdir(parents=True, exist_ok=True)
    wanted = [(s.package, s.version) for s in SETS] + list(WORDS)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda each: _fetch_one(packages, *each), wanted))


def _fetch_one(packages: Path, package: str, version: str) -> None:
    target = packages / folder_of(package)
    if target.is_dir():
        return
    packed = subprocess.run(
        ["npm", "pack", "--silent", f"{package}@{version}"],
        cwd=packages,
        check=True,
        capture_output=True,
        text=True,
    )
    archive = packages / packed.stdout.strip().splitlines()[-1]
    partial = target.with_suffix(".partial")
    with tarfile.open(archive) as tar:
        tar.extractall(partial, filter="data")
    (partial / "package").rename(target)
    partial.rmdir()
    archive.unlink()


def drawings(picture_set: PictureSet, packages: Path, catalogue: Catalogue) -> Iterator[Drawing]:
    """Yield every drawing of the set whose concept is known."""
    root = packages / folder_of(picture_set.package)
    if picture_set.kind == "webp":
        for path in sorted((root / "assets").glob("*.webp")):
            label = catalogue.by_code.get(code(path.stem))
            if label is not None:
                yield Drawing(picture_set.name, path.stem, label, False, False, str(path))
        return
    icons = json.loads((root / "icons.json").read_text("utf-8"))
    chars = root / "chars.json"
    codes = json.loads(chars.read_text("utf-8")) if chars.exists() else {}
    known: dict[str, str] = {}
    for hexcode, name in codes.items():
        if name not in known or code(hexcode) in catalogue.by_code:
            known[name] = code(hexcode)
    seen: Counter[tuple[str, bool]] = Counter()
    loose = "icons" in picture_set.kind
    for name, icon in icons["icons"].items():
        found = (
            _concept_of_icon(picture_set.name, name, catalogue)
            if loose
            else _concept_of_emoji(name, known.get(name), catalogue)
        )
        if found is None or seen[found] >= (PER_CONCEPT if loose else 2):
            continue
        seen[found] += 1
        yield Drawing(
            picture_set.name, name, *found, picture_set.kind.startswith("mono"), svg_of(icons, icon)
        )


def _concept_of_emoji(
    name: str, hexcode: str | None, catalogue: Catalogue
) -> tuple[str, bool] | None:
    if hexcode and _PRIVATE.fullmatch(hexcode):
        return None  # Unicode's private use area: the set's own drawings, such as trade marks.
    if hexcode in catalogue.by_code:
        return catalogue.by_code[hexcode], False
    if hexcode in catalogue.by_toned_code:
        return catalogue.by_toned_code[hexcode], True
    for candidate in (name, _SUFFIX.sub("", name)):
        label = catalogue.by_name.get(squash(candidate))
        if label is not None:
            return label, False
    return None


def _concept_of_icon(set_name: str, name: str, catalogue: Catalogue) -> tuple[str, bool] | None:
    stem = stem_of(name)
    key = squash(stem)
    if key in _ICON_TRAPS or f"{set_name}:{stem}" in _ICON_TRAPS:
        return None
    label = _ICON_NAMES.get(key) or catalogue.by_name.get(key)
    if label is None or catalogue.concepts[label].group not in _ICON_GROUPS:
        return None
    return label, False


def stem_of(name: str) -> str:
    """Leave out of an icon's name which variant it is: `cat-2-outline` -> `cat`."""
    while (shorter := _SUFFIX.sub("", name)) != name:
        name = shorter
    return name


def svg_of(icons: dict[str, Any], icon: dict[str, Any]) -> str:
    """Make a picture of an entry of `icons.json`, of which `icons` has the common sizes."""
    left, top = icon.get("left", icons.get("left", 0)), icon.get("top", icons.get("top", 0))
    width = icon.get("width", icons.get("width", 16))
    height = icon.get("height", icons.get("height", 16))
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="{left} {top} {width} {height}">{icon["body"]}</svg>'
    )


def render(drawing: Drawing, side: int = SIDE) -> Image.Image | None:
    """Draw as an RGBA image of `side` x `side` pixels, or None where nothing shows."""
    try:
        if drawing.body.endswith(".webp"):
            image = Image.open(drawing.body).convert("RGBA")
        else:
            svg = drawing.body.replace("<svg ", f'<svg width="{side}" height="{side}" ', 1)
            png = resvg_py.svg_to_bytes(svg_string=svg, width=side, height=side)
            image = Image.open(io.BytesIO(bytes(png))).convert("RGBA")
    except (ValueError, OSError):
        return None
    if image.size != (side, side):
        image.thumbnail((side, side), Image.Resampling.LANCZOS)
        square = Image.new("RGBA", (side, side))
        square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
        image = square
    return image if image.getchannel("A").getbbox() else None


def _pixels(drawing: Drawing) -> np.ndarray | None:
    image = render(drawing)
    return None if image is None else np.asarray(image)


def main() -> None:
    """Fetch, render, and write pictures.npy with pictures.csv."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="folder for all work files")
    work = parser.parse_args().work
    packages = work / "packages"
    fetch(packages)
    catalogue = read_catalogue(packages)
    todo = [
        drawing
        for picture_set in SETS
        if picture_set.name != HELD_OUT
        for drawing in drawings(picture_set, packages, catalogue)
    ]
    rows, kept = [], []
    with ProcessPoolExecutor() as pool:
        for drawing, pixels in zip(todo, pool.map(_pixels, todo, chunksize=64), strict=True):
            if pixels is not None:
                rows.append(pixels)
                kept.append(drawing)
    np.save(work / "pictures.npy", np.stack(rows))
    with (work / "pictures.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("set", "icon", "concept", "toned", "mono"))
        for d in kept:
            writer.writerow((d.set_name, d.icon, d.concept, int(d.toned), int(d.mono)))
    counts = Counter(d.set_name for d in kept)
    for name, count in counts.items():
        print(f"{name}: {count} drawings")
    print(f"{len(kept)} of {len(todo)} rendered, {len({d.concept for d in kept})} concepts")


if __name__ == "__main__":
    main()
