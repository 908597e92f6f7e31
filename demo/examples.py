"""Which drawings there are, what is true of them, and batches of both for training."""

from __future__ import annotations

import csv
import random
import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.multiprocessing as mp
from augment import augment
from captions import TEMPLATES, Catalogue, article, plain, read_catalogue
from numpy.typing import NDArray
from open_clip.tokenizer import SimpleTokenizer
from pictures import DEVELOPMENT
from torch import Tensor

GROUP_WEIGHTS = {
    "animals-nature": 1.6,
    "food-drink": 1.6,
    "travel-places": 1.4,
    "activities": 1.2,
    "objects": 1.3,
    "smileys-emotion": 0.7,
    "people-body": 0.5,
    "symbols": 0.6,
    "flags": 0.3,
}
"""How often a concept is drawn, by the group it is filed under: everyday things matter most."""
EMOJI_WEIGHT, ICON_WEIGHT, MONO_WEIGHT, TONED_WEIGHT = 1.0, 0.6, 0.35, 0.15
"""How often, of a concept's drawings, those of each kind are taken (see `pictures.SETS`)."""
_FIXED = re.compile(r"left|right|clock|button|letter|number|o.clock")


@dataclass(frozen=True, slots=True)
class Examples:
    """Which drawings there are, and what is true of them.

    Per concept, `rows` and `row_weights` lead to its pictures, and `names`, `tags` and `kinds`
    (category nouns) into `phrases`, which holds every phrase once. `mono` and `may_flip` are
    bool[pictures].
    """

    concepts: list[str]
    concept_weights: NDArray[np.float64]
    rows: list[NDArray[np.int64]]
    row_weights: list[NDArray[np.float64]]
    mono: Tensor
    may_flip: Tensor
    phrases: list[str]
    names: list[list[int]]
    tags: list[list[int]]
    kinds: list[list[int]]

    def truth(self) -> Tensor:
        """Tell which phrases are true of which concepts: bool[concepts, phrases]."""
        out = torch.zeros(len(self.concepts), len(self.phrases), dtype=torch.bool)
        for i in range(len(self.concepts)):
            out[i, self.names[i] + self.tags[i] + self.kinds[i]] = True
        return out


def read_examples(work: Path, catalogue: Catalogue) -> Examples:
    """Read all drawings but those of the development set."""
    with (work / "pictures.csv").open(encoding="utf-8") as file:
        listed = list(csv.DictReader(file))
    per_set: dict[tuple[str, str], int] = defaultdict(int)
    for row in listed:
        per_set[row["set"], row["concept"]] += 1
    rows: dict[str, list[int]] = defaultdict(list)
    weights: dict[str, list[float]] = defaultdict(list)
    for i, row in enumerate(listed):
        if row["set"] == DEVELOPMENT:
            continue
        weight = MONO_WEIGHT if row["mono"] == "1" else EMOJI_WEIGHT
        if per_set[row["set"], row["concept"]] > 1:
            weight = min(weight, ICON_WEIGHT)
        rows[row["concept"]].append(i)
        weights[row["concept"]].append(TONED_WEIGHT if row["toned"] == "1" else weight)
    concepts = sorted(rows)
    known = [catalogue.concepts[label] for label in concepts]
    phrases = sorted({phrase for concept in known for phrase in concept.phrases})
    index = {phrase: i for i, phrase in enumerate(phrases)}
    fixed = {
        c.label for c in known if c.group in ("symbols", "flags") or _FIXED.search(plain(c.label))
    }
    concept_weights = np.array([GROUP_WEIGHTS[c.group] for c in known])
    return Examples(
        concepts=concepts,
        concept_weights=concept_weights / concept_weights.sum(),
        rows=[np.array(rows[label]) for label in concepts],
        row_weights=[np.array(weights[c]) / sum(weights[c]) for c in concepts],
        mono=torch.tensor([row["mono"] == "1" for row in listed]),
        may_flip=torch.tensor([row["concept"] not in fixed for row in listed]),
        phrases=phrases,
        names=[[index[p] for p in c.names] for c in known],
        tags=[[index[p] for p in c.tags] for c in known],
        kinds=[[index[p] for p in c.categories] for c in known],
    )


def pick_name(examples: Examples, concept: int) -> int:
    """Pick a phrase for the first caption: mostly the label, else another name."""
    names = examples.names[concept]
    return names[0] if random.random() < 0.55 else random.choice(names)


def pick_tag(examples: Examples, concept: int) -> int:
    """Pick a phrase for the second caption: a category noun, a keyword, or a name."""
    tags, kinds = examples.tags[concept], examples.kinds[concept]
    draw = random.random()
    if draw < 0.5 or not tags:
        return kinds[0] if random.random() < 0.6 else random.choice(kinds)
    return random.choice(tags) if draw < 0.9 else random.choice(examples.names[concept])


def fill_forever(
    seed: int,
    work: Path,
    pictures: Tensor,
    labels: Tensor,
    free: mp.Queue[int],
    full: mp.Queue[int],
) -> None:
    """Fill slots of `pictures` (uint8[S, B, 3, side, side]) and `labels` (int64[S, 3, B]).

    A slot's labels are its concepts, its name phrases and its tag phrases. Runs in a process of
    its own, on shared memory, until it is ended; slot numbers come by `free` and go by `full`.
    """
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    random.seed(seed)
    rng = np.random.default_rng(seed)
    examples = read_examples(work, read_catalogue(work / "packages"))
    source = np.load(work / "pictures.npy", mmap_mode="r")
    count, side = labels.shape[-1], pictures.shape[-1]
    while True:
        slot = free.get()
        # No concept twice in a batch: two dogs would be each other's negatives.
        concepts = rng.choice(
            len(examples.concepts), count, replace=False, p=examples.concept_weights
        )
        rows = torch.tensor(
            [int(rng.choice(examples.rows[c], p=examples.row_weights[c])) for c in concepts]
        )
        pictures[slot] = augment(
            source[rows.numpy()], examples.mono[rows], examples.may_flip[rows], side
        )
        labels[slot, 0] = torch.from_numpy(concepts)
        labels[slot, 1] = torch.tensor([pick_name(examples, int(c)) for c in concepts])
        labels[slot, 2] = torch.tensor([pick_tag(examples, int(c)) for c in concepts])
        full.put(slot)


def tokenise(phrases: list[str], context_length: int) -> tuple[Tensor, Tensor]:
    """Put every phrase in every template, in a vocabulary of only the tokens that occur.

    Returns tokens int64[phrases, templates, context_length] and the vocabulary, int64[used]: the
    tokenizer's ids in ascending order, so that the end token stays the highest, which is how the
    text tower finds it. A short token table makes each step of the optimiser a third cheaper.
    """
    tokenizer = SimpleTokenizer(context_length=context_length)
    texts = [template.format(phrase) for phrase in phrases for template in TEMPLATES]
    # One in nine stays as some people write label files: without minding the vowel.
    texts = [text if i % 9 == 0 else article(text) for i, text in enumerate(texts)]
    tokens = torch.cat([tokenizer(texts[i : i + 4096]) for i in range(0, len(texts), 4096)])
    vocabulary = torch.unique(tokens)
    compact = torch.searchsorted(vocabulary, tokens)
    return compact.view(len(phrases), len(TEMPLATES), context_length), vocabulary
