"""Draw things that no training picture showed, to measure the demo model on words for them.

    python demo/unseen.py --work=FOLDER --into=build/unseen

FOLDER is that of pictures.py. `truth.csv` has one row per drawing: `path`, `name`, `description`
and `set`. The rule, fixed before any result was seen: every icon name that at least three of the
six one-coloured sets share (variants counted as one) and that is in no phrase of the training
captions is a candidate; `unseen.json` sorts all of them by hand into things with a description,
other names of something drawn, and what is no thing (signs, states, user interface). A description
has only words of the training captions and none of the thing's name. Each set's first drawing of
a thing is taken; the styles of the sets are not new to the model, what they show is.
"""

from __future__ import annotations

import argparse
import csv
import json
import re
from collections import defaultdict
from pathlib import Path

from captions import TEMPLATES, Catalogue, read_catalogue, squash
from pictures import (
    DEVELOPMENT,
    HELD_OUT,
    SETS,
    Drawing,
    drawings,
    folder_of,
    render,
    stem_of,
    svg_of,
)
from PIL import Image

SHARED = 3
"""In how many of the sets a name must be."""
SIDE = 256
_HERE = Path(__file__).parent


def candidates(packages: Path, catalogue: Catalogue) -> dict[str, list[Drawing]]:
    """Find the names that no caption has, with a drawing from each set that has the name."""
    phrases = {phrase for concept in catalogue.concepts.values() for phrase in concept.phrases}
    squashed = {squash(phrase) for phrase in phrases}
    spaced = "|".join(f" {' '.join(_words(phrase))} " for phrase in phrases)
    found: dict[str, dict[str, Drawing]] = defaultdict(dict)
    for picture_set in SETS:
        if picture_set.kind != "mono-icons":
            continue
        path = packages / folder_of(picture_set.package) / "icons.json"
        icons = json.loads(path.read_text("utf-8"))
        for icon, body in icons["icons"].items():
            name = stem_of(icon)
            if squash(name) not in squashed and f" {name.replace('-', ' ')} " not in spaced:
                drawing = Drawing(picture_set.name, icon, name, False, True, svg_of(icons, body))
                found[name].setdefault(picture_set.name, drawing)
    trained = {
        (drawing.set_name, drawing.icon)
        for picture_set in SETS
        if picture_set.name not in (DEVELOPMENT, HELD_OUT)
        for drawing in drawings(picture_set, packages, catalogue)
    }
    return {
        name: list(drawn.values())
        for name, drawn in found.items()
        if len(drawn) >= SHARED
        and not any((drawing.set_name, drawing.icon) in trained for drawing in drawn.values())
    }


def check(sorted_by_hand: dict[str, list[str] | dict[str, str]], found: set[str]) -> None:
    """End where `unseen.json` does not sort every candidate, each once."""
    named = [name for names in sorted_by_hand.values() for name in names]
    if sorted(named) != sorted(found):
        raise SystemExit(f"unseen.json is not the candidates: {set(named) ^ found}")


def check_words(descriptions: dict[str, str], catalogue: Catalogue) -> None:
    """End where a description has a word that no caption had, or one of the name."""
    known = {word for template in TEMPLATES for word in _words(template)}
    for concept in catalogue.concepts.values():
        known.update(word for phrase in concept.phrases for word in _words(phrase))
    for name, description in descriptions.items():
        words = set(_words(description))
        if wrong := (words - known) | (words & set(name.split("-"))):
            raise SystemExit(f"unseen.json: {name}: not in a caption, or in the name: {wrong}")


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9]+", text)


def draw(work: Path, into: Path) -> int:
    """Write the drawings, black on white, and truth.csv; return how many there are."""
    sorted_by_hand = json.loads((_HERE / "unseen.json").read_text("utf-8"))
    catalogue = read_catalogue(work / "packages")
    found = candidates(work / "packages", catalogue)
    check(sorted_by_hand, set(found))
    check_words(sorted_by_hand["concepts"], catalogue)
    into.mkdir(parents=True, exist_ok=True)
    rows = []
    for name, description in sorted_by_hand["concepts"].items():
        for drawing in found[name]:
            image = render(drawing, SIDE)
            if image is None:
                continue
            picture = Image.new("RGBA", image.size, "white")
            picture.alpha_composite(image)
            path = f"{name}--{drawing.set_name}.png"
            picture.convert("RGB").save(into / path)
            rows.append((path, name, description, drawing.set_name))
    with (into / "truth.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("path", "name", "description", "set"))
        writer.writerows(rows)
    return len(rows)


def main() -> None:
    """Draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="folder of pictures.py")
    parser.add_argument("--into", type=Path, required=True, help="folder for the pictures")
    args = parser.parse_args()
    print(f"{draw(args.work, args.into)} drawings in {args.into}")


if __name__ == "__main__":
    main()
