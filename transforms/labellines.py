"""Where a label set's labels and sentences stand: what a message about one of them points to."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from transforms.labelentries import Entry
from transforms.labelnodes import List, Map, Node, Page, Word


@dataclass(slots=True)
class LabelLines:
    """The lines of a set that was read from `source`, each as `file:line`.

    Of keys and of words in their lists, by the label's key (that of the set's own is empty).
    """

    source: str
    labels: dict[str, str] = field(default_factory=dict)
    _keys: dict[tuple[str, str], str] = field(default_factory=dict)
    _words: dict[tuple[str, str], str] = field(default_factory=dict)

    def label(self, label: str) -> str:
        """Where a label stands; of one without a line, where its file is."""
        return self.labels.get(label, self.source)

    def key(self, label: str, key: str) -> str:
        """Where a key's value begins, or else the label."""
        return self._keys.get((label, key)) or self.label(label)

    def word(self, label: str, word: str) -> str:
        """Where a prompt or template stands, or else the label."""
        return self._words.get((label, word)) or self.label(label)

    def has(self, label: str, key: str) -> bool:
        """Whether a key is written out."""
        return (label, key) in self._keys

    def add(self, label: str, page: Page, keys: Mapping[str, Node]) -> None:
        """Remember the lines of a label's keys, or of the set's."""
        for key, node in keys.items():
            if label or key not in ("labels", "includes"):
                self._keys[label, key] = page.where(node.line)
                for word in _words(node):
                    self._words.setdefault((label, word.text.strip()), page.where(word.line))


def lines_of(
    page: Page,
    keys: Mapping[str, Node],
    entries: Iterable[Entry],
    background: Mapping[str, tuple[Page, int]],
) -> LabelLines:
    """The lines of a set: of the `keys` of its file, of its labels and of its background."""
    lines = LabelLines(page.source)
    lines.add("", page, keys)
    for prompt, (where, line) in background.items():
        lines._words["", prompt] = where.where(line)
    for entry in entries:
        key = entry.label.key
        lines.labels[key] = entry.page.where(entry.line)
        lines.add(key, entry.page, entry.keys)
    return lines


def seen_from(where: str, here: str) -> str:
    """A place as a message on the line `here` names it: `line 3`, or with its file."""
    file, _, line = where.rpartition(":")
    is_near = line.isdecimal() and file and file == here.rpartition(":")[0]
    return f"line {line}" if is_near else where


def _words(node: Node) -> Iterable[Word]:
    if isinstance(node, Word):
        yield node
    elif isinstance(node, List):
        for item in node.items:
            yield from _words(item)
    elif isinstance(node, Map):
        for value in node.items[1::2]:
            yield from _words(value)
