"""A file's YAML as words, lists and maps that know their lines; nothing is constructed."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import yaml

MOST_NODES = 2_000_000
"""Words, lists and maps of a file at most: of the shortest words 64 MiB would be 30 million."""

MOST_DEEP = 20
"""How deep lists and maps are nested at most; a label file needs five."""

MOST_CHARS = 10_000
"""Of a word, or of prose, at most: no model reads as many."""

MOST_MISTAKES = 1000
"""Of a file, before the rest of it is not looked at: it is another kind of file."""

# libyaml gives the same events as the parser in Python, ten times as fast. Events, not nodes or
# values: they know their lines, `- no` and `- 2024` stay words, and nesting takes no stack.
_LOADER: type[yaml.SafeLoader] | type[yaml.CSafeLoader] = (
    yaml.CSafeLoader if yaml.__with_libyaml__ else yaml.SafeLoader
)
_NUMBER = re.compile(r"[-+]?([0-9]{1,20}\.?[0-9]{0,40}|\.[0-9]{1,40})([eE][-+]?[0-9]{1,4})?")
_NULLS = ("", "~", "null", "Null", "NULL")
# Controls and half characters; joiners (Cf) belong to words of several scripts.
_FOREIGN = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_FOREIGN_IN_PROSE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")

_Known = TypeVar("_Known", bound=str)


class LabelFileError(Exception):
    """A label file cannot be read or has mistakes: one line each, `file:line: what to do`."""

    def __init__(self, mistakes: Sequence[str]) -> None:
        super().__init__("\n".join(mistakes))
        self.mistakes = tuple(mistakes)


@dataclass(slots=True)
class Word:
    """Text as written; `plain` is without quotes, where `5` is a number and nothing is null."""

    line: int
    text: str
    plain: bool

    @property
    def is_null(self) -> bool:
        """Whether nothing is given."""
        return self.plain and self.text in _NULLS


@dataclass(slots=True)
class List:
    """Nodes in order."""

    line: int
    items: list[Node] = field(default_factory=list)


@dataclass(slots=True)
class Map:
    """Keys and values, by turns, in order."""

    line: int
    items: list[Node] = field(default_factory=list)


Node = Word | List | Map


class Page:
    """One file's nodes, as they are read, with every mistake that is found."""

    kind = "label file"
    needs = "name and labels"

    def __init__(self, source: str) -> None:
        self.source = source
        self._found: list[tuple[int, str]] = []

    def where(self, line: int) -> str:
        """A line of this file, as messages name it: `file:line`."""
        return f"{self.source}:{line}" if line else self.source

    def mistake(self, at: Node | int, message: str) -> None:
        """Note what is wrong on a line. Raises `TooManyMistakesError`."""
        if len(self._found) == MOST_MISTAKES:
            raise TooManyMistakesError
        line = at if isinstance(at, int) else at.line
        self._found.append((line, f"{self.where(line)}: {message}"))

    @property
    def mistakes(self) -> list[str]:
        """Those that were noted, by line."""
        told = [message for _, message in sorted(self._found, key=lambda found: found[0])]
        if len(told) == MOST_MISTAKES:
            told.append(f"{self.source}: {MOST_MISTAKES} mistakes; there may be more")
        return told

    def parse(self, text: str) -> Node | None:
        """The root of a file's YAML, or a mistake and None."""
        try:
            root = self._root(text)
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            line = mark.line if mark else 0
            start = re.match(r"\s*", [*text.splitlines(), ""][line])
            problem = (
                "a tab stands where only spaces may: indent with spaces"
                if start and "\t" in start[0]
                else error.problem
            )
            self.mistake(line + 1, f"not YAML: {problem}")
        except yaml.reader.ReaderError as error:
            # No mark; but what YAML forbids it forbids everywhere.
            place = text.find(chr(error.character)) if isinstance(error.character, int) else 0
            self.mistake(text.count("\n", 0, place) + 1, f"not YAML: {error.reason}")
        except UnicodeEncodeError as error:
            line = text.count("\n", 0, error.start) + 1
            self.mistake(line, "not YAML: half a character")
        except _RefusedError as error:
            self.mistake(error.line, str(error))
        else:
            if root is not None and not (isinstance(root, Word) and root.is_null):
                return root
            self.mistake(1, f"the file is empty; it needs {self.needs}")
        return None

    def _root(self, text: str) -> Node | None:
        root: Node | None = None
        inside: list[List | Map] = []
        count = 0
        for event in yaml.parse(text, Loader=_LOADER):
            line = event.start_mark.line + 1 if event.start_mark else 0
            node: Node
            if isinstance(event, yaml.ScalarEvent):
                node = Word(line, event.value, event.implicit[0])
            elif isinstance(event, yaml.SequenceStartEvent):
                node = List(line)
            elif isinstance(event, yaml.MappingStartEvent):
                node = Map(line)
            elif isinstance(event, yaml.CollectionEndEvent):
                inside.pop()
                continue
            elif isinstance(event, yaml.AliasEvent):
                # A few lines of them can stand for billions of words.
                raise _RefusedError(
                    line, f"*{event.anchor} refers to another place: write out what it stands for"
                )
            elif isinstance(event, yaml.DocumentStartEvent) and root is not None:
                raise _RefusedError(line, "a second document begins: --- may not stand here")
            else:
                continue
            count += 1
            if count > MOST_NODES:
                raise _RefusedError(line, f"not a {self.kind}: more than {MOST_NODES:,} words")
            if inside:
                inside[-1].items.append(node)
            else:
                root = node
            if not isinstance(node, Word):
                inside.append(node)
                if len(inside) > MOST_DEEP:
                    raise _RefusedError(line, f"not a {self.kind}: nested too deeply")
        return root

    def pairs(self, node: Map, what: str) -> Iterator[tuple[Word, Node]]:
        """A map's keys, each once, and values."""
        lines: dict[str, int] = {}
        for key, value in zip(node.items[::2], node.items[1::2], strict=True):
            if not isinstance(key, Word):
                self.mistake(key, f"a key of {what} must be a word")
            elif key.text in lines:
                self.mistake(
                    key, f"the key {key.text[:80]!r} stands on line {lines[key.text]} already"
                )
            else:
                lines[key.text] = key.line
                yield key, value

    def keys(self, node: Map, known: Sequence[str], what: str) -> dict[str, Node]:
        """A map's values by its keys, all of which must be known."""
        keys: dict[str, Node] = {}
        for key, value in self.pairs(node, what):
            if key.text in known:
                keys[key.text] = value
            else:
                close = difflib.get_close_matches(key.text, known, n=1)
                hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(known)}"
                self.mistake(key, f"unknown key {key.text[:80]!r} in {what}; {hint}")
        return keys

    def word(self, node: Node | None, what: str, prose: bool = False) -> str | None:
        """A word as written (`no` is a word here, not a boolean), or a mistake and None.

        None, too, for a key that is not there. `prose` may be empty and have several lines.
        """
        if node is None:
            return None
        if not isinstance(node, Word):
            self.mistake(node, f"{what} must be text")
            return None
        text = node.text.strip()
        if not text or node.is_null:
            if not prose:
                self.mistake(node, f"{what} is empty")
            return None
        if len(text) > MOST_CHARS:
            self.mistake(node, f"{what} has more than {MOST_CHARS:,} characters: {text[:40]!r}...")
            return None
        if (_FOREIGN_IN_PROSE if prose else _FOREIGN).search(text):
            self.mistake(node, f"{what} has characters that belong to no word: {text!r}")
            return None
        return text

    def items(self, node: Node | None, what: str) -> Sequence[Node]:
        """What is in a list; a mistake where there is nothing in it."""
        if node is None:
            return ()
        if not isinstance(node, List):
            self.mistake(node, f"{what} must be a list")
            return ()
        if not node.items:
            self.mistake(node, f"{what} is an empty list")
        return node.items

    def words(
        self,
        node: Node | None,
        what: str,
        each: str,
        wrong: Callable[[str], str | None] = lambda text: None,
    ) -> tuple[str, ...]:
        """The words of a list, each once, of which `wrong` says what is wrong."""
        lines: dict[str, int] = {}
        for item in self.items(node, what):
            text = self.word(item, each)
            if text is None:
                continue
            if text in lines:
                self.mistake(item, f"{each} {text!r} stands on line {lines[text]} already")
            elif (why := wrong(text)) is not None:
                self.mistake(item, f"{each} {text!r} {why}")
            else:
                lines[text] = item.line
        return tuple(lines)

    def number(
        self, node: Node | None, what: str, low: float, high: float, suffix: str = ""
    ) -> float | None:
        """A number from `low` to `high`; None where none is given."""
        if node is None or (isinstance(node, Word) and node.is_null):
            return None
        if isinstance(node, Word) and node.plain and _NUMBER.fullmatch(node.text):
            number = float(node.text)
            if low <= number <= high:
                return number
        self.mistake(node, f"{what} must be a number from {low:g} to {high:g}{suffix}")
        return None

    def choice(
        self, node: Node | None, what: str, known: Sequence[_Known], default: _Known
    ) -> _Known:
        """One of the words that are known."""
        if node is None:
            return default
        for word in known:
            if isinstance(node, Word) and node.text.strip() == word:
                return word
        self.mistake(node, f"{what} must be one of {', '.join(known)}")
        return default


class TooManyMistakesError(Exception):
    """A file has so many mistakes that it is not read on."""


class _RefusedError(Exception):
    """YAML, but none that a file of this kind may have."""

    def __init__(self, line: int, message: str) -> None:
        super().__init__(message)
        self.line = line
