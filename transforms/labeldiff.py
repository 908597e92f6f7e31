"""What a change of a label set does to an archive's tags, before anybody sees it; nothing written.

Both sets score the same vectors, a part at a time. What is kept grows with the labels and with what
is shown, never with the items.
"""

from __future__ import annotations

import heapq
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from transforms.hierarchy import Tree, tree_of
from transforms.labelpairs import Pairing
from transforms.latest import Items
from transforms.records import LabelVectors
from transforms.scoring import SCORES_AT_ONCE, scores, select, similarities

LEAST_CHANGE = 1e-3
"""A smaller change of an item's scores, all together, is rounding and not told."""

MOST_PAIRS = 500_000
"""How many different moves from a label to another are counted at least; of more, the rarest are
forgotten, and counts may be too small."""

DESTINATIONS = 3
"""To how many labels a label's items are told to have moved."""

Counts = npt.NDArray[np.int64]
Places = npt.NDArray[np.int64]
Scores = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Move:
    """So many items' best tag was `before` and is `after`; both are titles."""

    before: str
    after: str
    items: int


@dataclass(frozen=True, slots=True)
class LabelChange:
    """What becomes of a label. `before` and `after` are the items that it is a tag of.

    `gained` and `lost` are those that have it in one of the two only; `moved` those whose best tag
    it was and whose best tag another label is now, most often one of `moved_to`. `was` is the old
    set's title of it where that is another.
    """

    label_id: str
    label: str
    sets: Literal["both", "old", "new"]
    was: str | None
    before: int
    after: int
    gained: int
    lost: int
    moved: int
    moved_to: tuple[Move, ...]

    @property
    def size(self) -> int:
        """How much changes."""
        return self.gained + self.lost + self.moved


@dataclass(frozen=True, slots=True)
class Tag:
    """A tag of an item, as it would stand in the table."""

    label: str
    score: float


@dataclass(frozen=True, slots=True)
class ItemChange:
    """An item, how much its scores change (all labels' changes added up), and its tags."""

    uri: str
    change: float
    before: tuple[Tag, ...]
    after: tuple[Tag, ...]


@dataclass(frozen=True, slots=True)
class Difference:
    """What a change of a label set does to some items.

    Of `items`, `retagged` have other tags, `moved` another best tag, and `untagged_before` and
    `untagged_after` none. `labels` are all of both sets, the most changed first; `moves` the most
    frequent ones, and `items_most_changed` the items whose scores change most.
    """

    items: int
    retagged: int
    moved: int
    untagged_before: int
    untagged_after: int
    labels: tuple[LabelChange, ...]
    moves: tuple[Move, ...]
    items_most_changed: tuple[ItemChange, ...]

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def compare(
    items: Iterable[Items], old: LabelVectors, new: LabelVectors, pairing: Pairing, top: int
) -> Difference:
    """Score items with both sets; `top` is how many moves and items are kept."""
    counting = _Counting(_Side(old, pairing.old), _Side(new, pairing.new), pairing, top)
    rows = max(1, SCORES_AT_ONCE // max(len(old.vectors), len(new.vectors), len(pairing.keys)))
    for some in items:
        for start in range(0, len(some.uris), rows):
            counting.add(some.uris[start : start + rows], some.vectors[start : start + rows])
    return counting.result()


class _Side:
    """One of the two sets: its scores and tags in the columns of both."""

    def __init__(self, labels: LabelVectors, columns: Places) -> None:
        self.labels = labels
        self.tree: Tree = tree_of(labels.parents)
        self.columns = columns
        # Where a place is -1, for no tag: the column behind the last.
        self._with_none = np.append(columns, -1)

    def score(self, vectors: Scores) -> tuple[Scores, Places]:
        """Scores `[N, L]`, and tags `[N, K]` as places of labels, best first, -1 for none."""
        score = scores(similarities(vectors, self.labels), self.labels, self.tree)
        return score, select(score, self.labels, self.tree)

    def mask(self, places: Places, count: int) -> npt.NDArray[np.bool_]:
        """Tags as `[N, count]`."""
        found = np.zeros((len(places), count + 1), bool)
        np.put_along_axis(found, self._with_none[places] % (count + 1), True, axis=1)
        return found[:, :count]

    def best(self, places: Places) -> Places:
        """The columns `[N]` of the best tags, -1 for none."""
        return np.asarray(self._with_none[places[:, 0]])

    def tags(self, score: Scores, places: Places, titles: Sequence[str]) -> tuple[Tag, ...]:
        """One item's tags."""
        taken = places[places >= 0].tolist()
        return tuple(Tag(titles[self.columns[at]], float(score[at])) for at in taken)


@dataclass(slots=True)
class _Counting:
    old: _Side
    new: _Side
    pairing: Pairing
    top: int
    items: int = 0
    retagged: int = 0
    untagged: Counts = field(default_factory=lambda: np.zeros(2, np.int64))
    counts: Counts = field(init=False)
    """Before, after, gained, lost and moved of each column: `[5, U]`."""
    pairs: Counter[int] = field(default_factory=Counter)
    """How often the best tag was column b and is column a, by b * U + a."""
    most: list[tuple[float, int, ItemChange]] = field(default_factory=list)
    """A heap, the least change first; of equal ones, the item that came last."""
    uncounted: list[int] = field(init=False)
    """The columns whose changes of score do not count."""

    def __post_init__(self) -> None:
        size = len(self.pairing.keys)
        self.counts = np.zeros((5, size), np.int64)
        # Without a label its score is 0: what is never found. A cosine is no such measure.
        self.uncounted = [
            column
            for side, other in ((self.old, self.new), (self.new, self.old))
            if side.labels.activation == "cosine"
            for column in np.setdiff1d(side.columns, other.columns).tolist()
        ]

    def add(self, uris: Sequence[str], vectors: Scores) -> None:
        size = len(self.pairing.keys)
        old_score, old_places = self.old.score(vectors)
        new_score, new_places = self.new.score(vectors)
        before, after = self.old.mask(old_places, size), self.new.mask(new_places, size)
        was, is_ = self.old.best(old_places), self.new.best(new_places)
        moves = (was != is_) & (was >= 0) & (is_ >= 0)
        self.counts += [
            before.sum(axis=0),
            after.sum(axis=0),
            (after & ~before).sum(axis=0),
            (before & ~after).sum(axis=0),
            np.bincount(was[moves], minlength=size),
        ]
        pairs, times = np.unique(was[moves] * size + is_[moves], return_counts=True)
        self.pairs.update(dict(zip(pairs.tolist(), times.tolist(), strict=True)))
        if len(self.pairs) > 2 * MOST_PAIRS:
            self.pairs = Counter(dict(self.pairs.most_common(MOST_PAIRS)))
        self.retagged += int((before != after).any(axis=1).sum())
        self.untagged += [int((was < 0).sum()), int((is_ < 0).sum())]

        change = np.zeros((len(uris), size), np.float32)
        change[:, self.new.columns] = new_score
        change[:, self.old.columns] -= old_score
        change[:, self.uncounted] = 0
        total = np.abs(change, out=change).sum(axis=1)
        least = self.most[0][0] if len(self.most) == self.top else LEAST_CHANGE
        for row in np.argsort(-total, kind="stable")[: self.top].tolist():
            # As much as the least: that one came before.
            if total[row] < LEAST_CHANGE or (len(self.most) == self.top and total[row] <= least):
                break
            item = ItemChange(
                uris[row],
                float(total[row]),
                self.old.tags(old_score[row], old_places[row], self.pairing.titles),
                self.new.tags(new_score[row], new_places[row], self.pairing.titles),
            )
            entry = (item.change, -(self.items + row), item)
            if len(self.most) < self.top:
                heapq.heappush(self.most, entry)
            else:
                heapq.heapreplace(self.most, entry)
            least = self.most[0][0]
        self.items += len(uris)

    def result(self) -> Difference:
        size = len(self.pairing.keys)
        titles = self.pairing.titles
        # Of equally frequent moves, the one whose labels come first.
        pairs = sorted(self.pairs.items(), key=lambda pair: (-pair[1], pair[0]))
        moves = [(*divmod(pair, size), times) for pair, times in pairs]
        moved_to: dict[int, list[Move]] = defaultdict(list)
        for before, after, times in moves:
            if len(moved_to[before]) < DESTINATIONS:
                moved_to[before].append(Move(titles[before], titles[after], times))
        in_old = np.isin(np.arange(size), self.pairing.old)
        in_new = np.isin(np.arange(size), self.pairing.new)
        labels = []
        for column, (before, after, gained, lost, moved) in enumerate(self.counts.T.tolist()):
            labels.append(
                LabelChange(
                    label_id=self.pairing.keys[column],
                    label=titles[column],
                    sets="new" if not in_old[column] else "both" if in_new[column] else "old",
                    was=self.pairing.was[column],
                    before=before,
                    after=after,
                    gained=gained,
                    lost=lost,
                    moved=moved,
                    moved_to=tuple(moved_to[column]),
                )
            )
        return Difference(
            items=self.items,
            retagged=self.retagged,
            moved=int(self.counts[4].sum()),
            untagged_before=int(self.untagged[0]),
            untagged_after=int(self.untagged[1]),
            labels=tuple(sorted(labels, key=lambda label: -label.size)),
            moves=tuple(
                Move(titles[before], titles[after], times)
                for before, after, times in moves[: self.top]
            ),
            items_most_changed=tuple(item for *_, item in sorted(self.most, reverse=True)),
        )
