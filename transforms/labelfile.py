"""The file an archivist writes, checked line by line: a `LabelSet`, or every mistake in it."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import get_args

from transforms.labelchecks import check_against, check_background, check_names, with_parents
from transforms.labelentries import LABEL_KEYS, Entry, LabelPage, no_hole
from transforms.labellines import LabelLines, lines_of
from transforms.labelnodes import LabelFileError, List, Map, Node, TooManyMistakesError, Word
from transforms.labels import (
    DEFAULT_TEMPLATES,
    DEFAULT_TOP_K,
    IMAGENET,
    LabelSet,
    builtin_label_sets,
    builtin_label_text,
    imagenet,
)
from transforms.labelsources import beside, identity, read_text
from transforms.records import Activation, Levels

__all__ = [
    "LABEL_KEYS",
    "SET_KEYS",
    "LabelFileError",
    "parse_label_set",
    "read_label_lines",
    "read_label_set",
]

SET_KEYS = (
    "name", "version", "labels", "includes", "templates", "activation", "temperature", "top_k",
    "threshold", "background", "levels", "example_weight", "adapter",
)  # fmt: skip

MOST_FILES = 100
"""How many files a label set is put together from at most."""

# The name becomes part of a path and of people's SQL.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_WHOLE = re.compile(r"0{0,9}[1-9][0-9]{0,8}(\.0{0,9})?")


def read_label_set(source: str) -> LabelSet:
    """The label set of a file, local or remote, or the built-in one of this name.

    Raises `LabelFileError`, also for a file that cannot be read.
    """
    if source == IMAGENET:
        return imagenet()
    return parse_label_set(_text(source), source)


def parse_label_set(text: str, source: str) -> LabelSet:
    """Check a label file's YAML and build the set; `source` is the file's name in messages.

    What the file names is looked for beside `source`: the label files that it includes are read,
    pictures and adapters are not. Raises `LabelFileError` with every mistake found, each with its
    line.
    """
    return _parse(text, source)[0]


def read_label_lines(source: str) -> tuple[LabelSet, LabelLines]:
    """As `read_label_set`, with the lines on which labels and sentences stand.

    ImageNet's has none.
    """
    if source == IMAGENET:
        return imagenet(), LabelLines(source)
    label_set, part = _parse(_text(source), source)
    return label_set, lines_of(LabelPage(source), part.keys, part.entries, part.background)


def _parse(text: str, source: str) -> tuple[LabelSet, _Part]:
    reading = _Reading()
    read = None
    with contextlib.suppress(TooManyMistakesError):
        read = _FileReader(LabelPage(source), reading).read_set(text)
    mistakes = [mistake for page in reading.pages for mistake in page.mistakes]
    if mistakes or read is None:
        raise LabelFileError(mistakes)
    return read


def _text(source: str) -> str:
    return builtin_label_text(source) if source in builtin_label_sets() else read_text(source)


@dataclass(slots=True)
class _Reading:
    """What the files of one set share.

    `way` leads to the one that is being read. `listed` counts labels, those with mistakes too;
    `is_whole` is false once a file could not be included. `activation` is that of the whole set.
    """

    pages: list[LabelPage] = field(default_factory=list)
    files: set[str] = field(default_factory=set)
    way: list[str] = field(default_factory=list)
    listed: int = 0
    is_whole: bool = True
    activation: Activation | None = None


@dataclass(slots=True)
class _Part:
    """What one file says, with what it includes in front: a set whose labels are `entries`.

    `keys` are its own.
    """

    settings: LabelSet
    keys: Mapping[str, Node] = field(default_factory=dict)
    entries: list[Entry] = field(default_factory=list)
    background: dict[str, tuple[LabelPage, int]] = field(default_factory=dict)


class _FileReader:
    """Reads one file, and those that it includes, noting every mistake instead of the first."""

    def __init__(self, page: LabelPage, reading: _Reading) -> None:
        self.page = page
        self.reading = reading
        reading.pages.append(page)

    def read_set(self, text: str) -> tuple[LabelSet, _Part] | None:
        """The whole set; None where it is none at all."""
        part = self.read(text)
        if part is None:
            return None
        check_names(part.entries)
        is_alone = len(part.entries) == self.reading.listed == 1 and self.reading.is_whole
        if is_alone and part.settings.activation == "softmax" and not part.background:
            part.entries[0].page.mistake(
                part.entries[0].line,
                "softmax over a single label always scores 1.0: add a label for what it is not, "
                "or background, or set activation: cosine",
            )
        labels = with_parents(part.entries)
        label_set = replace(part.settings, labels=tuple(labels), background=tuple(part.background))
        check_against(label_set, part.entries)
        check_background(part.background, part.entries)
        return label_set, part

    def read(self, text: str) -> _Part | None:
        """One file's part of a set; None where it has none."""
        page, reading = self.page, self.reading
        root = page.parse(text)
        if root is None:
            return None
        if not isinstance(root, Map):
            page.mistake(root, "a label file is a map with the keys name and labels")
            return None
        keys = page.keys(root, SET_KEYS, "a label set")
        if "name" not in keys:
            page.mistake(root, "the label set has no 'name'")
        if not {"labels", "includes"} & keys.keys():
            page.mistake(root, "the label set has no 'labels'")
        own = page.choice(keys.get("activation"), "activation", get_args(Activation), "softmax")
        is_included = reading.activation is not None
        # What a tag's score means is said by the file that includes the others.
        activation = reading.activation = reading.activation or own
        part = _Part(self._settings(keys, own), keys)
        me = identity(page.source)
        reading.files.add(me)
        reading.way.append(me)
        self._include(keys.get("includes"), part)
        reading.way.pop()
        listed = page.items(keys.get("labels"), "labels")
        reading.listed += len(listed)
        part.entries += [entry for node in listed if (entry := page.entry(node, activation))]
        self._background(keys.get("background"), activation, part)
        if is_included:
            _settle(
                part.entries,
                part.settings.templates if "templates" in keys else (),
                part.settings.example_weight if "example_weight" in keys else None,
            )
        return part

    def _settings(self, keys: Mapping[str, Node], activation: Activation) -> LabelSet:
        page = self.page
        name = page.word(keys.get("name"), "name")
        if name is not None and not _NAME.fullmatch(name):
            page.mistake(
                keys["name"],
                f"name {name!r} becomes part of a path: use letters, digits, '.', '_' and '-' "
                "(64 at most, a letter or digit first)",
            )
        temperature = page.positive(keys.get("temperature"), "temperature", activation)
        weight = page.number(keys.get("example_weight"), "example_weight", 0, 1)
        settings = LabelSet(
            name=name or "",
            labels=(),
            templates=page.templates(keys.get("templates")) or DEFAULT_TEMPLATES,
            top_k=self._top_k(keys.get("top_k")),
            threshold=page.threshold(keys.get("threshold"), activation),
            activation=activation,
            temperature=temperature,
            levels=page.choice(keys.get("levels"), "levels", get_args(Levels), "every"),
            adapter=page.resource(keys.get("adapter"), "adapter"),
            version=page.word(keys.get("version"), "version", prose=True) or "",
        )
        return settings if weight is None else replace(settings, example_weight=weight)

    def _include(self, node: Node | None, part: _Part) -> None:
        page, reading = self.page, self.reading
        names = page.words(node, "includes", "a file to include")
        for item in node.items if isinstance(node, List) else ():
            name = item.text.strip() if isinstance(item, Word) else ""
            if name not in names:
                continue
            source = name if name in builtin_label_sets() else beside(page.source, name)
            file = identity(source)
            if file in reading.way:
                way = [*reading.way[reading.way.index(file) :], file]
                page.mistake(item, f"files include each other: {' -> '.join(way)}")
            # A file that two others include comes along once.
            if file in reading.files:
                continue
            if len(reading.files) == MOST_FILES:
                page.mistake(item, f"a label set is made of {MOST_FILES} files at most")
                return
            reading.files.add(file)
            included = self._builtin() if source == IMAGENET else self._included(item, name, source)
            reading.is_whole &= included is not None
            if included is not None:
                part.entries += included.entries
                part.background = included.background | part.background

    def _included(self, node: Node, name: str, source: str) -> _Part | None:
        try:
            text = _text(source)
        except LabelFileError as error:
            self.page.mistake(node, f"cannot include {name}: {error}")
            return None
        return _FileReader(LabelPage(source), self.reading).read(text)

    def _builtin(self) -> _Part:
        label_set = imagenet()
        page = LabelPage(IMAGENET)
        self.reading.pages.append(page)
        self.reading.listed += len(label_set.labels)
        part = _Part(label_set, {}, [Entry(label, page, 0) for label in label_set.labels])
        _settle(part.entries, label_set.templates, None)
        return part

    def _background(self, node: Node | None, activation: Activation, part: _Part) -> None:
        prompts = self.page.words(node, "background", "a background prompt", no_hole)
        if node is not None and activation != "softmax":
            self.page.mistake(node, f"background takes part in a softmax, and not in {activation}")
        elif isinstance(node, List):
            for item in node.items:
                text = item.text.strip() if isinstance(item, Word) else ""
                if text in prompts:
                    part.background.setdefault(text, (self.page, item.line))

    def _top_k(self, node: Node | None) -> int:
        if node is None or (isinstance(node, Word) and node.is_null):
            return DEFAULT_TOP_K
        if isinstance(node, Word) and node.plain and _WHOLE.fullmatch(node.text):
            return int(float(node.text))
        self.page.mistake(node, "top_k must be a whole number from 1")
        return DEFAULT_TOP_K


def _settle(entries: list[Entry], templates: Sequence[str], weight: float | None) -> None:
    """Give an included file's labels what it says for all of them, so that they keep it."""
    for entry in entries:
        label = entry.label
        if label.examples and label.example_weight is None:
            label = replace(label, example_weight=weight)
        if not label.prompts and not label.templates and label.example_weight != 1:
            label = replace(label, templates=tuple(templates))
        entry.label = label
