"""An archive that changes from night to night, and how the job is started on each of them."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from conftest import encoded, picture

CONTENTS = {
    "one": encoded(picture(32, 32, 1)),
    "two": encoded(picture(32, 32, 2)),
    "three": encoded(picture(32, 32, 3), "PNG"),
    "large": encoded(picture(32, 32, 4), "BMP"),
    "cut off": encoded(picture(32, 32, 1))[:500],
    "words": b"a dog",
    "more words": b"a house by a tree",
    "zeros": bytes(64),
    "nothing": b"",
}
LARGE = 3000
"""Bytes, between the large content's and those of all others."""

PICTURES = {"one", "two", "three", "large"}
TEXTS = {"words", "more words"}

NAMES = ("a.jpg", "b.jpg", "c.png", "d.txt", "sub/e.jpg", "sub/f.txt")
"""In the order in which they are listed: a folder's files, then those of its subfolders."""

DAYS = ("2026-01-01", "2026-01-02")


class Item(NamedTuple):
    """A file as it was on some night."""

    uri: str
    version: str


class Edit(NamedTuple):
    """Something that is done to the archive; of names that are not there, nothing."""

    what: str
    name: str
    with_: str = ""


@dataclass(frozen=True)
class Night:
    """What is done to the archive, and how the job is then started.

    Of the files that it writes only the first `survive` are kept, as if it had been killed.
    """

    edits: tuple[Edit, ...] = ()
    inputs: tuple[str, ...] = ("",)
    texts: bool = False
    label_sets: tuple[str, ...] = ("few",)
    model: int = 0
    day: str = DAYS[0]
    retry: str = "retryable"
    refuse_large: bool = False
    prune: bool = False
    shard_size: int = 4
    batch_size: int = 2
    survive: int | None = None

    @property
    def flags(self) -> dict[str, object]:
        """How the job is told."""
        told: dict[str, object] = {
            "run_date": self.day,
            "retry": self.retry,
            "shard_size": self.shard_size,
            "batch_size": self.batch_size,
        }
        if self.refuse_large:
            told["max_bytes"] = LARGE
        return told

    def covers(self, given: str, name: str) -> bool:
        """Whether one of the inputs would list this name."""
        place, _, pattern = given.strip("/").partition("*")
        kinds = (".jpg", ".png", ".txt") if self.texts else (".jpg", ".png")
        if pattern:
            return "/" not in name and name.endswith(pattern)
        return name.endswith(kinds) and (not place or name.startswith(f"{place}/"))


@dataclass
class Archive:
    """A folder of files whose times are told by a clock of its own."""

    folder: Path
    files: dict[str, tuple[str, int]] = field(default_factory=dict)
    contents: dict[Item, str] = field(default_factory=dict)
    clock: int = 1_700_000_000

    def __post_init__(self) -> None:
        (self.folder / "sub").mkdir(parents=True)

    def edit(self, edit: Edit) -> None:
        what, name, other = edit
        if what == "put":
            self._write(name, other)
        elif name not in self.files:
            return
        elif what == "touch":
            self._write(name, self.files[name][0])
        elif what == "copy":
            self._write(other, self.files[name][0])
        else:
            known = self.files.pop(name)
            if what == "remove":
                (self.folder / name).unlink()
            else:
                os.replace(self.folder / name, self.folder / other)
                self.files[other] = known
                self.contents[self.item(other)] = known[0]

    def _write(self, name: str, content: str) -> None:
        self.clock += 1
        (self.folder / name).write_bytes(CONTENTS[content])
        os.utime(self.folder / name, (self.clock, self.clock))
        self.files[name] = content, self.clock
        self.contents[self.item(name)] = content

    def item(self, name: str) -> Item:
        content, time = self.files[name]
        return Item(f"{self.folder}/{name}", f"{float(time)}-{len(CONTENTS[content])}")

    def name(self, item: Item) -> str:
        return item.uri.removeprefix(f"{self.folder}/")

    def listed(self, night: Night) -> list[Item]:
        return list(
            dict.fromkeys(
                self.item(name)
                for given in night.inputs
                for name in NAMES
                if name in self.files and night.covers(given, name)
            )
        )
