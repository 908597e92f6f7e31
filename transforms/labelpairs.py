"""Which labels of two label sets are the same, and what both are called together; pure."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from transforms.labelchecks import same
from transforms.labels import Label, LabelSet

Places = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Pairing:
    """The labels of two sets in one row: the new set's, then those that only the old one has.

    `old[i]` is the column of the old set's label i, and `new` likewise. Of each column `titles` is
    the path that it is told by (with its id where two have the same), `keys` its id or name,
    `was` the old set's path where that is another, and None where only one set has the label.
    """

    old: Places
    new: Places
    titles: tuple[str, ...]
    keys: tuple[str, ...]
    was: tuple[str | None, ...]


def pair_labels(old: LabelSet, new: LabelSet) -> Pairing:
    """Which labels of two sets are the same: those of one id, else of one name.

    A label without an id has its name for one (`label_id` in the tables). By name only labels are
    paired of which one has no id, and only one by one.
    """
    places = {label.key: place for place, label in enumerate(new.labels)}
    partners = {
        place: places[label.key] for place, label in enumerate(old.labels) if label.key in places
    }
    taken = set(partners.values())
    named = _by_name(new.labels, taken)
    for name, befores in _by_name(old.labels, partners).items():
        afters = named.get(name, [])
        if len(befores) == len(afters) == 1 and not (
            old.labels[befores[0]].id and new.labels[afters[0]].id
        ):
            partners[befores[0]] = afters[0]
    count = len(new.labels)
    gone = [place for place in range(len(old.labels)) if place not in partners]
    columns = {**partners, **{place: count + number for number, place in enumerate(gone)}}
    old_paths = old.paths
    paths = [*new.paths, *(old_paths[place] for place in gone)]
    labels = [*new.labels, *(old.labels[place] for place in gone)]
    was: list[str | None] = [None] * len(paths)
    for before, after in partners.items():
        was[after] = old_paths[before] if old_paths[before] != paths[after] else None
    times = Counter(paths)
    return Pairing(
        old=np.array([columns[place] for place in range(len(old.labels))], np.int64),
        new=np.arange(count, dtype=np.int64),
        titles=tuple(
            f"{path} ({label.id})" if label.id and times[path] > 1 else path
            for path, label in zip(paths, labels, strict=True)
        ),
        keys=tuple(label.key for label in labels),
        was=tuple(was),
    )


def _by_name(labels: Sequence[Label], paired: Iterable[int]) -> dict[str, list[int]]:
    """The places of labels that are not paired, by name."""
    left = set(range(len(labels))).difference(paired)
    named = defaultdict(list)
    for place in sorted(left):
        named[same(labels[place].name)].append(place)
    return named
