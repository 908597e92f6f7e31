"""Accuracy on the development set: what may be looked at while training goes on."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from captions import article, plain, read_catalogue
from open_clip.model import CLIP
from open_clip.tokenizer import SimpleTokenizer
from pictures import DEVELOPMENT
from torch import Tensor

_TEMPLATES = ("{}", "a {}", "a photo of a {}", "a drawing of a {}")


class Development:
    """The development set's drawings on white, and the questions of `everyday.json` on them."""

    def __init__(self, work: Path, vocabulary: Tensor, context_length: int) -> None:
        """Read the drawings; `vocabulary` is that of `examples.tokenise`."""
        with (work / "pictures.csv").open(encoding="utf-8") as file:
            rows = [(i, row) for i, row in enumerate(csv.DictReader(file))]
        rows = [(i, r) for i, r in rows if r["set"] == DEVELOPMENT and r["toned"] == "0"]
        source = np.load(work / "pictures.npy", mmap_mode="r")[[i for i, _ in rows]]
        pixels = torch.from_numpy(source).permute(0, 3, 1, 2).float()
        alpha = pixels[:, 3:] / 255
        self.pictures = pixels[:, :3] * alpha + 255 * (1 - alpha)
        self.vocabulary = vocabulary
        self.tokenizer = SimpleTokenizer(context_length=context_length)
        labels = [row["concept"] for _, row in rows]
        truth = json.loads((Path(__file__).parent / "everyday.json").read_text("utf-8"))
        self.tasks: dict[str, tuple[list[str], list[int]]] = {}
        for task in ("everyday", "categories"):
            nouns = list(truth[task])
            of = {label: i for i, noun in enumerate(nouns) for label in truth[task][noun]}
            self.tasks[task] = nouns, [of.get(label, -1) for label in labels]
        concepts = read_catalogue(work / "packages").concepts
        names = sorted(set(labels))
        self.tasks["names"] = (
            [plain(concepts[name].label) for name in names],
            [names.index(label) for label in labels],
        )

    @torch.no_grad()
    def measure(self, model: CLIP, mean: Tensor, std: Tensor, side: int) -> str:
        """Top-1 % of each task, as one line; `mean` and `std` are for pixels of 0 to 255."""
        model.eval()
        parts = []
        for start in range(0, len(self.pictures), 256):
            part = self.pictures[start : start + 256]
            part = F.interpolate(part, (side, side), mode="bicubic", antialias=True)
            part = (part.clamp(0, 255) - mean) / std
            parts.append(model.encode_image(part, normalize=True))
        image = torch.cat(parts)
        found = []
        for task, (nouns, answers) in self.tasks.items():
            total = torch.zeros(len(nouns), image.shape[1])
            for template in _TEMPLATES:
                tokens = self.tokenizer([article(template.format(noun)) for noun in nouns])
                tokens = torch.searchsorted(self.vocabulary, tokens)
                tokens.clamp_(max=len(self.vocabulary) - 1)
                total += model.encode_text(tokens, normalize=True)
            best = (image @ F.normalize(total, dim=-1).T).argmax(1)
            right = [int(b) == a for b, a in zip(best, answers, strict=True) if a >= 0]
            found.append(f"{task} {100 * sum(right) / len(right):.1f}% of {len(right)}")
        return ", ".join(found)
