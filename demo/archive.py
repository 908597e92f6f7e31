"""Make the archive that ships with the package: about sixty media files to try Beamtag on.

    python demo/archive.py --work=FOLDER

writes transforms/data/demo_archive/ (emptied first) and demo/archive_truth.csv (`path,label`, one
row per readable file). The drawings are OpenMoji's, the set the demo model never saw, placed on
plain, coloured and graded grounds at the sizes and in the formats archives hold. On purpose among
them: a JPEG stored turned with an EXIF Orientation, a PNG with transparency, and two files that
no decoder can read. Same inputs, same bytes (for one version of Pillow and resvg).
"""

from __future__ import annotations

import argparse
import csv
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from captions import read_catalogue
from pictures import HELD_OUT, SETS, Drawing, drawings, render
from PIL import Image

ARCHIVE = Path(__file__).parents[1] / "transforms" / "data" / "demo_archive"
TRUTH = Path(__file__).with_name("archive_truth.csv")

# folder -> noun -> concepts to draw. Chosen by hand before the model had seen any of them.
CONTENTS: dict[str, dict[str, tuple[str, ...]]] = {
    "animals": {
        "dog": ("dog face", "dog", "poodle"),
        "cat": ("cat face", "cat"),
        "horse": ("horse", "horse face"),
        "bird": ("bird", "eagle"),
        "fish": ("fish", "tropical fish"),
        "elephant": ("elephant",),
        "rabbit": ("rabbit face", "rabbit"),
        "butterfly": ("butterfly",),
    },
    "food": {
        "apple": ("red apple", "green apple"),
        "banana": ("banana",),
        "strawberry": ("strawberry",),
        "pizza": ("pizza",),
        "hamburger": ("hamburger",),
        "cake": ("birthday cake", "shortcake"),
        "coffee": ("hot beverage",),
    },
    "travel": {
        "car": ("automobile", "oncoming automobile"),
        "bus": ("bus",),
        "train": ("locomotive", "high-speed train"),
        "airplane": ("airplane", "small airplane"),
        "boat": ("sailboat", "speedboat"),
        "bicycle": ("bicycle",),
        "house": ("house", "house with garden"),
    },
    "garden": {
        "tree": ("deciduous tree", "evergreen tree", "palm tree"),
        "flower": ("tulip", "sunflower", "rose"),
        "mushroom": ("mushroom",),
    },
    "things": {
        "book": ("open book", "closed book"),
        "clock": ("alarm clock", "mantelpiece clock"),
        "guitar": ("guitar",),
        "umbrella": ("umbrella", "closed umbrella"),
        "camera": ("camera", "camera with flash"),
        "phone": ("mobile phone", "telephone"),
        "shoe": ("running shoe", "man\u2019s shoe"),
        "soccer ball": ("soccer ball",),
    },
}
TURNED, CUT_OUT = "travel/house-1.jpg", "animals/butterfly-1.png"
SIZES = ((512, 512), (640, 480), (480, 480), (480, 640), (320, 320), (600, 400), (256, 256))
"""Width and height in pixels, taken in turn."""
FORMATS = ("jpg", "jpg", "png", "jpg", "webp", "jpg", "gif", "png", "jpg", "tiff")
COLOURS = (
    (244, 239, 228), (205, 226, 240), (250, 214, 165), (198, 224, 180), (236, 200, 205),
    (90, 110, 140), (222, 222, 222), (255, 240, 150), (180, 170, 215), (70, 120, 100),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Entry:
    """One file: where, what it shows, and its number, from which everything else follows."""

    path: str
    label: str
    concept: str
    number: int


def entries() -> list[Entry]:
    """Every readable file of the archive."""
    found: list[Entry] = []
    for folder, nouns in CONTENTS.items():
        for noun, concepts in nouns.items():
            for k, concept in enumerate(concepts, 1):
                number = len(found)
                stem = f"{folder}/{noun.replace(' ', '-')}-{k}"
                suffix = FORMATS[number % len(FORMATS)]
                for special in (TURNED, CUT_OUT):
                    if special.rsplit(".", 1)[0] == stem:
                        suffix = special.rsplit(".", 1)[1]
                found.append(Entry(f"{stem}.{suffix}", noun, concept, number))
    return found


def ground(number: int, width: int, height: int, graded: bool) -> Image.Image:
    """White, one colour, or (where the format keeps it small) a gradient between two."""
    kind = number % 5
    if kind in (0, 3):
        return Image.new("RGB", (width, height), "white")
    first, second = (np.array(COLOURS[(number * step) % len(COLOURS)]) for step in (3, 7))
    if kind == 1 or not graded:
        return Image.new("RGB", (width, height), tuple(int(c) for c in first))
    down = np.linspace(0, 1, height)[:, None, None]
    along = np.linspace(0, 1, width)[None, :, None]
    share = down if kind == 2 else (down + along) / 2
    pixels = first * (1 - share) + second * share + np.zeros((height, width, 1))
    return Image.fromarray(pixels.round().astype(np.uint8))


def compose(entry: Entry, drawing: Drawing) -> Image.Image:
    """Put the drawing on its ground, RGB, or RGBA where it stays cut out."""
    width, height = SIZES[entry.number % len(SIZES)]
    side = int(min(width, height) * (0.96, 0.82, 0.9, 0.74)[entry.number % 4])
    figure = render(drawing, side)
    if figure is None:
        raise ValueError(f"{drawing.concept} does not render")
    place = ((width - side) // 2, (height - side) // 2)
    if entry.path == CUT_OUT:
        canvas = Image.new("RGBA", (width, height), (0, 0, 0, 0))
        canvas.alpha_composite(figure, place)
        return canvas
    canvas = ground(entry.number, width, height, Path(entry.path).suffix in (".jpg", ".webp"))
    canvas.paste(figure, place, figure)
    return canvas


def save(picture: Image.Image, path: Path) -> None:
    """Write in the format the suffix says, small as archives are after a web export."""
    suffix = path.suffix
    if suffix == ".jpg":
        picture.save(path, quality=85, optimize=True)
    elif suffix == ".webp":
        picture.save(path, quality=82, method=6)
    elif suffix == ".tiff":
        picture.save(path, compression="tiff_deflate")
    elif suffix == ".gif":
        picture.quantize(64, dither=Image.Dither.NONE).save(path)
    else:
        picture.save(path, optimize=True)


def save_turned(picture: Image.Image, path: Path) -> None:
    """Store a JPEG as a camera held upright does: lying, with EXIF Orientation 6 to say so."""
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010F] = "Beamtag"
    picture.transpose(Image.Transpose.ROTATE_90).save(path, quality=85, exif=exif)


def save_unreadable(folder: Path, sample: Path) -> None:
    """Write a JPEG cut off inside its header, and a web page that was saved as a picture."""
    folder.mkdir()
    (folder / "cut-off.jpg").write_bytes(sample.read_bytes()[:150])
    (folder / "not-a-picture.jpg").write_text(
        "<!DOCTYPE html>\n<title>404 Not Found</title>\n<h1>Not Found</h1>\n", encoding="utf-8"
    )


def main() -> None:
    """Make the archive and its truth."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="folder of pictures.py")
    parser.add_argument("--into", type=Path, default=ARCHIVE)
    args = parser.parse_args()
    packages = args.work / "packages"
    catalogue = read_catalogue(packages)
    held_out = next(s for s in SETS if s.name == HELD_OUT)
    known: dict[str, Drawing] = {}
    for drawing in drawings(held_out, packages, catalogue):
        if not drawing.toned:
            known.setdefault(drawing.concept, drawing)
    partial = args.into.with_name(args.into.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    for folder in CONTENTS:
        (partial / folder).mkdir(parents=True)
    listed = entries()
    for entry in listed:
        picture = compose(entry, known[entry.concept])
        if entry.path == TURNED:
            save_turned(picture, partial / entry.path)
        else:
            save(picture, partial / entry.path)
    save_unreadable(partial / "inbox", partial / TURNED)
    shutil.rmtree(args.into, ignore_errors=True)
    partial.rename(args.into)
    with TRUTH.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("path", "label"))
        writer.writerows(sorted((entry.path, entry.label) for entry in listed))
    size = sum(path.stat().st_size for path in args.into.rglob("*") if path.is_file())
    print(f"{len(listed)} readable files, 2 unreadable, {size} bytes")


if __name__ == "__main__":
    main()
