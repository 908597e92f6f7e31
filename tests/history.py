"""In memory, and in a few lines, what the tables of an archive should hold after each night."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from archives import PICTURES, TEXTS, Archive, Item, Night


class Shard:
    """What one run has written of some items."""

    def __init__(self, model: int, day: str, items: Sequence[Item]) -> None:
        self.model, self.day, self.items = model, day, tuple(items)
        self.embedded: set[Item] = set()
        self.failed: dict[Item, str] = {}
        self.scored: set[str] = set()


@dataclass
class Expected:
    """What a night's run should come to; with `refused` it does not prune, and fails."""

    counts: dict[str, int]
    failures: Counter[str]
    known_failures: int
    scored: int
    loaded: list[str]
    pruned: int | None
    refused: bool


class Tables:
    """What should be in the output."""

    def __init__(self, archive: Archive) -> None:
        self._archive = archive
        self.shards: list[Shard] = []
        self.latest: dict[tuple[int, str], str] = {}
        self._seen: dict[str, list[str]] = {}

    def of(self, model: int) -> list[Shard]:
        return [shard for shard in self.shards if shard.model == model]

    def run(self, night: Night) -> Expected:
        """Take in what a run should do."""
        listed = self._archive.listed(night)
        for item in listed:
            self._seen.setdefault(item.uri, []).append(item.version)
        mine = self.of(night.model)
        embedded = {item for shard in mine for item in shard.embedded}
        # None of our failures is worth another try, but that is not asked with `all`.
        failed = {
            item: reason
            for shard in self.shards
            for item, reason in shard.failed.items()
            if night.retry != "all"
        }
        new = [item for item in listed if item not in embedded and item not in failed]
        known = Counter(failed[item] for item in listed if item in failed and item not in embedded)
        unscored = [shard for shard in mine if not shard.scored.issuperset(night.label_sets)]
        scored = sum(len(shard.embedded) for shard in unscored)
        for shard in unscored:
            shard.scored.update(night.label_sets)
        have = {self.content(item) for item in embedded}
        written = [
            self._write(night, new[start : start + night.shard_size])
            for start in range(0, len(new), night.shard_size)
        ]
        vectors = {item for shard in written for item in shard.embedded}
        reasons = Counter(reason for shard in written for reason in shard.failed.values())
        models_work = len({self.content(item) for item in vectors} - have)
        refused, pruned = self._prune(night, listed)
        return Expected(
            counts={
                "listed": len(listed),
                "reused": sum(item in embedded for item in listed),
                "embedded": models_work,
                "duplicates": len(vectors) - models_work,
                "failed": (reasons + known).total(),
            },
            failures=reasons + known,
            known_failures=known.total(),
            scored=scored,
            loaded=["image", "text"] if new else ["text"] if unscored else [],
            pruned=pruned,
            refused=refused,
        )

    def content(self, item: Item) -> tuple[str, str]:
        """What an item that can be embedded is embedded as."""
        content = self._archive.contents[item]
        return ("text" if content in TEXTS else "image"), content

    def _write(self, night: Night, items: Sequence[Item]) -> Shard:
        shard = Shard(night.model, night.day, items)
        shard.scored.update(night.label_sets)
        for item in items:
            if reason := self._why_not(night, item):
                shard.failed[item] = reason
            else:
                shard.embedded.add(item)
                self.latest[night.model, item.uri] = item.version
        self.shards.append(shard)
        return shard

    def _why_not(self, night: Night, item: Item) -> str | None:
        content = self._archive.contents[item]
        is_text = item.uri.endswith(".txt")
        if content == "large" and night.refuse_large:
            return "too_many_bytes"
        if content in PICTURES or (content in TEXTS and is_text):
            return None
        if content == "cut off":
            return "truncated_image"
        if content == "nothing":
            return "empty"
        return "not_text" if is_text else "not_an_image"

    def _prune(self, night: Night, listed: Sequence[Item]) -> tuple[bool, int | None]:
        if not night.prune:
            return False, None
        here = {self._archive.name(item) for item in listed}
        gone = set()
        for item in {item for shard in self.shards for item in (*shard.embedded, *shard.failed)}:
            name = self._archive.name(item)
            covering = [given for given in night.inputs if night.covers(given, name)]
            if name in here or not covering:
                continue
            if not all(any(night.covers(given, other) for other in here) for given in covering):
                return True, None
            gone.add(item)
        for shard in self.shards:
            shard.embedded -= gone
            shard.failed = {item: why for item, why in shard.failed.items() if item not in gone}
        uris = {item.uri for item in gone}
        self.latest = {key: seen for key, seen in self.latest.items() if key[1] not in uris}
        return False, len(gone)

    def lose(self, shard: Shard, table: str) -> None:
        """A file of a shard is not there after all."""
        if table == "embeddings":
            self.shards.remove(shard)
            for item in shard.embedded:
                self._forget(shard.model, item)
        elif table == "failures":
            shard.failed = {}
        else:
            shard.scored.remove(table)

    def _forget(self, model: int, item: Item) -> None:
        before = [s.embedded for s in self.of(model)]
        del self.latest[model, item.uri]
        for embedded in before:
            for other in embedded:
                if other.uri == item.uri:
                    self.latest[model, item.uri] = other.version

    def came_back(self, item: Item) -> bool:
        """Whether another version of it was listed since this one was first."""
        seen = self._seen[item.uri]
        return any(other != item.version for other in seen[seen.index(item.version) :])

    def embeddings(self) -> Counter[tuple[int, str, Item]]:
        return Counter(
            (shard.model, shard.day, item) for shard in self.shards for item in shard.embedded
        )

    def failures(self) -> Counter[tuple[str, Item, str]]:
        return Counter(
            (shard.day, item, reason)
            for shard in self.shards
            for item, reason in shard.failed.items()
        )

    def predictions(
        self, tags: Callable[[int, str, Item], Iterable[tuple[int, str | None]]]
    ) -> Counter[tuple[str, int, str, Item, int, str | None]]:
        """Rows; `tags` gives the ranks and labels of an item by model and label set."""
        return Counter(
            (label_set, shard.model, shard.day, item, *tag)
            for shard in self.shards
            for label_set in shard.scored
            for item in shard.embedded
            for tag in tags(shard.model, label_set, item)
        )


def shard_files(output: Path) -> Iterator[Path]:
    """The files of tables, each shard's in the order in which they are written."""
    order = {"embeddings": 0, "predictions": 1, "failures": 2}
    found = [path for table in order for path in (output / table).rglob("*.parquet")]
    yield from sorted(
        found,
        key=lambda path: (
            path.parent.name,
            path.name,
            order[path.relative_to(output).parts[0]],
            str(path),
        ),
    )
