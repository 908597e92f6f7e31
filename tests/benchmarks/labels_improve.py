"""By how much hierarchy, examples, calibration and adapting improve labels on unseen drawings.

    python demo/heldout.py --work=FOLDER --into=build/heldout     (once; see demo/README.md)
    python tests/benchmarks/labels_improve.py [--set=build/heldout] [--unseen=build/unseen]

One run of the job embeds the folder; all else is done with its vectors, as the jobs do it. Each
figure is of pictures that nothing was learnt from: the median of several random splits, and their
range. The demo model has seen the category words in its training, so they say all that it knows;
an archive has labels for which there are no such words. Two stand for them: the same categories in
German, of which the model knows nothing, and the second folder's things, which no training picture
showed, by their descriptions (see unseen.py).
"""

from __future__ import annotations

import argparse
import csv
import statistics
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import bench
import numpy as np
from demo_accuracy import MISSING_SET
from unseen import TEMPLATES

SPLITS = 5
PICTURES = (1, 5, 20)
EXAMPLES = 5

GERMAN = {
    "animal": "Tier", "food": "Essen", "drink": "Getränk", "plant": "Pflanze",
    "vehicle": "Fahrzeug", "building": "Gebäude", "person": "Mensch",
    "smiley face": "Grinsegesicht",
    "hand": "Hand", "flag": "Fahne", "sport": "Leibesübung", "clothing": "Kleidung",
    "musical instrument": "Musikinstrument", "clock": "Uhr", "symbol": "Zeichen",
}  # fmt: skip

# Written down from what the words mean, without a look at the drawings.
MEMBERS = {
    "animal": "dog, cat, horse, cow, pig, sheep, bird, fish, insect, snake, bear, lion, monkey, "
    "rabbit, mouse, frog, elephant, butterfly, spider, whale",
    "food": "fruit, vegetable, bread, meat, cheese, cake, pizza, hamburger, apple, rice, soup, "
    "egg, candy, ice cream, salad",
    "drink": "coffee, tea, wine, beer, juice, milk, cocktail, bottle",
    "plant": "tree, flower, leaf, cactus, grass, mushroom, herb",
    "vehicle": "car, bus, train, airplane, boat, bicycle, truck, motorcycle, ship, helicopter, "
    "rocket, tractor",
    "building": "house, church, castle, office building, hospital, school, factory, tower, hotel, "
    "bridge, stadium",
    "person": "man, woman, child, baby, old man, police officer, doctor, cook, farmer, teacher, "
    "family, dancer",
    "smiley face": "happy face, sad face, angry face, crying face, laughing face, sleeping face, "
    "surprised face",
    "hand": "pointing finger, fist, waving hand, thumbs up, clapping hands, open hand",
    "flag": "country flag, white flag, rainbow flag, pirate flag",
    "sport": "football, basketball, tennis, swimming, running, skiing, boxing, golf, baseball, "
    "medal",
    "clothing": "shirt, trousers, dress, shoe, hat, coat, glove, sock, glasses, bag",
    "musical instrument": "guitar, piano, violin, drum, trumpet, flute, saxophone",
    "clock": "watch, alarm clock, wall clock, hourglass, stopwatch",
    "symbol": "arrow, sign, letter, number, heart, star, cross, circle, square, zodiac sign",
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--set", type=Path, default=bench.ROOT / "build" / "heldout")
    parser.add_argument("--unseen", type=Path, default=bench.ROOT / "build" / "unseen")
    parser.add_argument("--model", default=bench.DEMO_MODEL, help="as `beamtag tag` takes it")
    args = parser.parse_args()
    folder, unseen = args.set.resolve(), args.unseen.resolve()
    if not (folder / "truth.csv").exists():
        bench.result(f"labels: not measured: no {folder}/truth.csv (see demo/README.md)")
        return MISSING_SET
    lab = _Lab(args.model)
    categories = column(folder, "category")
    vectors = lab.embed(folder)
    words = lab.label_set(bench.HERE / "categories15.yaml")
    print(f"\n{len(categories)} drawings of {len(words.labels)} categories")
    hierarchy(lab, words, vectors, categories)
    examples(lab, words, vectors, categories, "categories")
    calibration(lab, words, vectors, categories)
    adapting(lab, words, vectors, categories, "categories", PICTURES)
    german = {path: GERMAN[name] for path, name in categories.items()}
    named = tuple(replace(label, name=GERMAN[label.name]) for label in words.labels)
    words = replace(words, labels=named)
    examples(lab, words, vectors, german, "categories in German")
    adapting(lab, words, vectors, german, "categories in German", PICTURES)
    if (unseen / "truth.csv").exists():
        things = column(unseen, "description")
        described = lab.described(sorted(set(things.values())))
        print(f"\n{len(things)} drawings of {len(described.labels)} things, by their descriptions")
        vectors = lab.embed(unseen)
        examples(lab, described, vectors, things, "unseen things", count=2)
        adapting(lab, described, vectors, things, "unseen things", (1, 2, 3))
    return 0


def column(folder: Path, name: str) -> dict[str, str]:
    """A column of truth.csv by path, of the pictures that have something there."""
    with (folder / "truth.csv").open(newline="", encoding="utf-8") as file:
        return {row["path"]: row[name] for row in csv.DictReader(file) if row[name]}


class _Lab:
    """The model, and what it makes of pictures and labels."""

    def __init__(self, name: str) -> None:
        from transforms.model import shared_text_model
        from transforms.modelstore import describe_model
        from transforms.records import ModelSpec

        spec = ModelSpec(name, None, "cpu")
        self.name = name
        self.model_id = describe_model(spec).model_id
        self.model = shared_text_model(spec)

    def embed(self, folder: Path) -> dict[str, np.ndarray]:
        """The vectors of a folder's pictures by their paths in it, from the job's tables."""
        from transforms.latest import collect, latest_vectors

        labels = bench.HERE / "categories15.yaml"
        with bench.scratch() as scratch:
            output = scratch / "output"
            bench.run_job(bench.job_arguments(folder, [labels], output, self.name), output)
            items = collect(latest_vectors(str(output), self.model_id))
        paths = (str(Path(uri).relative_to(folder)) for uri in items.uris)
        return dict(zip(paths, items.vectors, strict=True))

    def label_set(self, path: Path):
        from transforms.labelfile import read_label_set

        return read_label_set(str(path))

    def described(self, descriptions: Sequence[str]):
        from transforms.labels import Label, LabelSet

        return LabelSet("unseen", tuple(map(Label, descriptions)), templates=TEMPLATES, top_k=1)

    def place(self, label_set, examples=None):
        from transforms.labelvectors import label_vectors

        return label_vectors(label_set, self.model, examples)


def labelled(label_set, vectors, truth):
    """The items with truth, in order of their paths."""
    from transforms.splitting import Labelled

    places = {label.name: place for place, label in enumerate(label_set.labels)}
    paths = sorted(truth)
    stated = np.zeros((len(paths), len(places)), bool)
    stated[np.arange(len(paths)), [places[truth[path]] for path in paths]] = True
    return Labelled(np.stack([vectors[path] for path in paths]), stated)


def some_of_each(stated: np.ndarray, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """At random so many items of each label, but for the last half of them; and all others."""
    random = np.random.default_rng(seed)
    taken = []
    for column in stated.T:
        has = random.permutation(np.flatnonzero(column))
        taken.append(has[: min(count, len(has) * 7 // 10)])
    first = np.sort(np.concatenate(taken))
    return first, np.setdiff1d(np.arange(len(stated)), first)


def told(what: str, before: Sequence[float], after: Sequence[float], digits: int = 3) -> None:
    gains = [new - old for old, new in zip(before, after, strict=True)]
    bench.result(
        f"{what}: {statistics.median(before):.{digits}f} -> {bench.spread(after, digits)}; "
        f"gain {bench.spread(gains, digits)}"
    )


def hierarchy(lab: _Lab, words, vectors, truth) -> None:
    """Things in place of categories: which category they mean, without and with one above them."""
    from transforms.hierarchy import tree_of
    from transforms.labels import Label
    from transforms.metrics import average_precisions, mean_of
    from transforms.scoring import scores, similarities

    names = list(MEMBERS)
    things = [
        Label(word, id=f"{name}/{word}", parent=name)
        for name in names
        for word in MEMBERS[name].split(", ")
    ]
    items = labelled(words, vectors, truth)
    count = len(names)
    assert names == [label.name for label in words.labels]

    def score(label_set) -> np.ndarray:
        labels = lab.place(label_set)
        return scores(similarities(items.vectors, labels), labels, tree_of(labels.parents))

    of_things = score(replace(words, labels=tuple(replace(thing, parent=None) for thing in things)))
    above = np.array([names.index(thing.parent) for thing in things])
    ways = {
        "best thing": np.stack(
            [of_things[:, above == place].max(axis=1) for place in range(count)], axis=1
        ),
        "with categories above": score(replace(words, labels=(*words.labels, *things)))[:, :count],
        "category words alone": score(words),
    }
    figures: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for seed in range(SPLITS):
        half = np.random.default_rng(seed).permutation(len(items.stated))[::2]
        stated = items.stated[half]
        for name, found in ways.items():
            right = stated[np.arange(len(half)), found[half].argmax(axis=1)].mean()
            mean = mean_of(average_precisions(found[half], stated))
            figures[name].append((float(right), mean))
    for place, metric in enumerate(("category top-1", "category mAP")):
        flat, tree, alone = ([pair[place] for pair in figures[name]] for name in ways)
        told(f"hierarchy, {len(things)} words for things, {metric}, best thing -> tree", flat, tree)
        print(
            f"  ({metric} of the category words alone, all learnt by heart: {bench.spread(alone)})"
        )


def examples(lab: _Lab, words, vectors, truth, what: str, count: int = EXAMPLES) -> None:
    """Pictures of a label beside its words, and in place of them."""
    from transforms.adapting import measure
    from transforms.labels import Resource

    paths = sorted(truth)
    items = labelled(words, vectors, truth)
    shown = {Resource(path): vectors[path] for path in paths}
    flat = lab.place(words)
    before: list[float] = []
    after: dict[float, list[float]] = {0.2: [], 0.5: [], 1.0: []}
    for seed in range(SPLITS):
        taken, rest = some_of_each(items.stated, count, seed)
        checked = items.part(rest)
        before.append(measure(flat, checked, "top-1"))
        for weight, found in after.items():
            labels = tuple(
                replace(
                    label,
                    examples=tuple(
                        Resource(paths[row]) for row in taken if items.stated[row, place]
                    ),
                )
                for place, label in enumerate(words.labels)
            )
            placed = lab.place(replace(words, labels=labels, example_weight=weight), shown)
            found.append(measure(placed, checked, "top-1"))
    for weight, found in after.items():
        told(f"{count} examples a label, weight {weight}, {what}, top-1", before, found)


def calibration(lab: _Lab, words, vectors, truth) -> None:
    """A temperature for the softmax, and thresholds in place of the best label alone."""
    from transforms.calibration import calibrate
    from transforms.splitting import split

    items = labelled(words, vectors, truth)
    labels = lab.place(words)
    steps = [
        calibrate(words, labels, *(items.part(rows) for rows in split(items.stated, 0.3, seed)))
        for seed in range(SPLITS)
    ]
    befores, afters = [step.before for step in steps], [step.tagged for step in steps]
    for name, of in {
        "temperature, ECE (less is better)": lambda figures: figures.ece,
        "temperature, NLL (less is better)": lambda figures: figures.nll,
        "thresholds, mean F1 of tags": lambda figures: figures.f1,
        "thresholds, precision of tags": lambda figures: figures.precision,
    }.items():
        before, after = ([of(figures) for figures in side] for side in (befores, afters))
        told(f"calibration, {name}", before, after)


def adapting(lab: _Lab, words, vectors, truth, what: str, counts: Sequence[int]) -> None:
    """A linear probe that starts from the words, strength by cross-validation."""
    from transforms.adapting import adapted, choose_strength, learn, measure

    items = labelled(words, vectors, truth)
    labels = lab.place(words)
    for count in counts:
        before, after = [], []
        for seed in range(SPLITS):
            taken, rest = some_of_each(items.stated, count, seed)
            few, checked = items.part(taken), items.part(rest)
            strength = choose_strength(labels, few, "top-1", seed)
            learnt = adapted(labels, learn(labels, few, lab.model_id, strength))
            before.append(measure(labels, checked, "top-1"))
            after.append(measure(learnt, checked, "top-1"))
        told(f"adapt, {count} pictures a label, {what}, top-1", before, after)


if __name__ == "__main__":
    sys.path.insert(0, str(bench.ROOT))
    sys.exit(main())
