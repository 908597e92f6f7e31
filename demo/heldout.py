"""Draw the held-out set as picture files, and measure a model on them.

    python demo/heldout.py --work=FOLDER --into=FOLDER2            the pictures and truth.csv
    python demo/heldout.py --work=FOLDER --into=FOLDER2 --measure  top-1 and top-5 on them too

`truth.csv` has one row per drawing: `path` (below FOLDER2), `name` (its own), `everyday_label` and
`category` (empty where it has none). Which drawings count as what is fixed in `everyday.json`,
which was written before training. Pictures are PNG on white.
"""

from __future__ import annotations

import argparse
import csv
import json
from pathlib import Path

import open_clip
import torch
import torch.nn.functional as F
from captions import article, plain, read_catalogue
from pictures import HELD_OUT, SETS, drawings, render
from PIL import Image
from torch import Tensor

TEMPLATES = ("{}", "a {}", "a photo of a {}", "an emoji of a {}", "a drawing of a {}")
"""The prompts averaged for each label when measuring."""
_HERE = Path(__file__).parent


def draw(set_name: str, work: Path, into: Path, side: int = 256) -> list[dict[str, str]]:
    """Write the drawings of a set and truth.csv; return its rows.

    Toned drawings (skin colours) are left out, and of several drawings of one concept the first
    is taken, so that every concept counts once.
    """
    truth = json.loads((_HERE / "everyday.json").read_text("utf-8"))
    noun_of = {
        task: {label: noun for noun, labels in truth[task].items() for label in labels}
        for task in ("everyday", "categories")
    }
    catalogue = read_catalogue(work / "packages")
    picture_set = next(s for s in SETS if s.name == set_name)
    into.mkdir(parents=True, exist_ok=True)
    rows: dict[str, dict[str, str]] = {}
    for drawing in drawings(picture_set, work / "packages", catalogue):
        if drawing.toned or drawing.concept in rows:
            continue
        image = render(drawing, side)
        if image is None:
            continue
        picture = Image.new("RGBA", image.size, "white")
        picture.alpha_composite(image)
        path = f"{drawing.icon}.png"
        picture.convert("RGB").save(into / path)
        rows[drawing.concept] = {
            "path": path,
            "name": plain(drawing.concept),
            "everyday_label": noun_of["everyday"].get(drawing.concept, ""),
            "category": noun_of["categories"].get(drawing.concept, ""),
        }
    listed = sorted(rows.values(), key=lambda row: row["path"])
    with (into / "truth.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ("path", "name", "everyday_label", "category"))
        writer.writeheader()
        writer.writerows(listed)
    return listed


@torch.no_grad()
def measure(rows: list[dict[str, str]], into: Path, model_name: str) -> dict[str, object]:
    """Accuracy of an open_clip model, in %, on the drawings in `into`."""
    model, _, preprocess = open_clip.create_model_and_transforms(model_name)
    tokenizer = open_clip.get_tokenizer(model_name)
    model.eval()
    parts = []
    for start in range(0, len(rows), 128):
        batch = [preprocess(Image.open(into / r["path"])) for r in rows[start : start + 128]]
        parts.append(model.encode_image(torch.stack(batch), normalize=True))
    image = torch.cat(parts)
    found: dict[str, object] = {}
    for column in ("everyday_label", "category", "name"):
        nouns = sorted({r[column] for r in rows if r[column]})
        text = sum(
            model.encode_text(
                tokenizer([article(template.format(noun)) for noun in nouns]), normalize=True
            )
            for template in TEMPLATES
        )
        assert isinstance(text, Tensor)
        index = [i for i, r in enumerate(rows) if r[column]]
        answer = torch.tensor([nouns.index(rows[i][column]) for i in index])
        similarity = image[index] @ F.normalize(text, dim=-1).T
        best = similarity.topk(min(5, len(nouns))).indices
        right = best == answer[:, None]
        found[column] = {
            "labels": len(nouns),
            "pictures": len(index),
            "top1": _percent(right[:, 0]),
            "top5": _percent(right.any(1)),
        }
        if column == "name":
            continue
        found[f"{column} each"] = {
            noun: f"{int(right[answer == k, 0].sum())} of {int((answer == k).sum())}"
            for k, noun in enumerate(nouns)
        }
        found[f"{column} wrong"] = [
            f"{rows[i]['path']}: {nouns[int(b)]}"
            for i, b, ok in zip(index, best[:, 0], right[:, 0], strict=True)
            if not ok
        ]
    return found


def _percent(right: Tensor) -> float:
    return round(100 * right.float().mean().item(), 1)


def main() -> None:
    """Draw; with --measure, measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="folder of pictures.py")
    parser.add_argument("--into", type=Path, required=True, help="folder for the pictures")
    parser.add_argument("--set", default=HELD_OUT, choices=[s.name for s in SETS])
    parser.add_argument("--measure", action="store_true")
    parser.add_argument(
        "--model", default=f"local-dir:{_HERE.parent / 'transforms' / 'data' / 'demo_model'}"
    )
    args = parser.parse_args()
    rows = draw(args.set, args.work, args.into)
    print(f"{len(rows)} drawings in {args.into}")
    if args.measure:
        print(json.dumps(measure(rows, args.into, args.model), indent=1, ensure_ascii=False))


if __name__ == "__main__":
    main()
