"""The file an archivist writes, checked line by line: a `LabelSet`, or every mistake in it."""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Iterator, Sequence
from typing import get_args

import yaml

from transforms.labels import (
    DEFAULT_TEMPLATES,
    DEFAULT_TOP_K,
    ENSEMBLES,
    Label,
    LabelSet,
    builtin_label_sets,
    builtin_label_text,
    builtin_templates,
)
from transforms.records import Activation

_SET_KEYS = ("name", "labels", "templates", "top_k", "threshold", "activation")
_LABEL_KEYS = ("name", "prompts")
# The name becomes part of a path and of people's SQL.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class LabelFileError(Exception):
    """A label file cannot be read or has mistakes: one line each, `file:line: what to do`."""

    def __init__(self, mistakes: Sequence[str]) -> None:
        super().__init__("\n".join(mistakes))
        self.mistakes = tuple(mistakes)


def read_label_set(source: str) -> LabelSet:
    """The label set of a file, local or remote, or the built-in one of this name.

    Raises `LabelFileError`, also for a file that cannot be read.
    """
    if source in builtin_label_sets():
        return parse_label_set(builtin_label_text(source), source)
    # Not at the top: only a job that reads a file waits for fsspec.
    from transforms.storage import read_object

    try:
        text = read_object(source).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        mistake = f"{source} is not UTF-8 text: byte {error.start} is not"
        raise LabelFileError([mistake]) from None
    except FileNotFoundError:
        mistake = (
            f"no label file {source}, and no built-in label set of that name "
            f"({', '.join(builtin_label_sets())})"
        )
        raise LabelFileError([mistake]) from None
    # Any store's client, any error of its own: the file cannot be read.
    except Exception as error:
        mistake = f"cannot read {source}: {str(error) or type(error).__name__}"
        raise LabelFileError([mistake]) from error
    return parse_label_set(text, source)


def parse_label_set(text: str, source: str) -> LabelSet:
    """Check a label file's YAML and build the set; `source` is the file's name in messages.

    Raises `LabelFileError` with every mistake found, each with its line.
    """
    try:
        # Nodes, not values: they know their lines, and `- no` and `- 2024` stay words.
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except RecursionError:
        raise LabelFileError([f"{source}:1: not a label file: nested too deeply"]) from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        raise LabelFileError([f"{source}:{line}: not YAML: {error.problem}"]) from None
    except yaml.YAMLError as error:
        # Characters that YAML forbids: no mark, but a position.
        line = text.count("\n", 0, getattr(error, "position", 0)) + 1
        reason = getattr(error, "reason", "unreadable")
        raise LabelFileError([f"{source}:{line}: not YAML: {reason}"]) from None
    reader = _Reader(source)
    label_set = reader.read(root)
    if reader.mistakes or label_set is None:
        raise LabelFileError(reader.mistakes)
    return label_set


class _Reader:
    """One pass over a label file's nodes that collects every mistake instead of the first."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.mistakes: list[str] = []

    def read(self, root: yaml.Node | None) -> LabelSet | None:
        if root is None:
            self.mistakes.append(f"{self.source}:1: the file is empty; it needs name and labels")
            return None
        if not isinstance(root, yaml.MappingNode):
            self._mistake(root, "a label file is a map with the keys name and labels")
            return None
        keys = self._keys(root, _SET_KEYS, "label set")
        for required in ("name", "labels"):
            if required not in keys:
                self._mistake(root, f"the label set has no {required!r}")
        name = self._name(keys.get("name"))
        labels = self._labels(keys.get("labels"))
        templates = self._templates(keys.get("templates"))
        top_k = self._top_k(keys.get("top_k"))
        activation = self._activation(keys.get("activation"))
        threshold = self._threshold(keys.get("threshold"), activation)
        listed = keys.get("labels")
        if activation == "softmax" and listed is not None and len(listed.value) == len(labels) == 1:
            self._mistake(
                listed,
                "softmax over a single label always scores 1.0: add a label for what it is not, "
                "or set activation: cosine",
            )
        if self.mistakes:
            return None
        return LabelSet(name, labels, templates, top_k, threshold, activation)

    def _mistake(self, node: yaml.Node, message: str) -> None:
        self.mistakes.append(f"{self.source}:{node.start_mark.line + 1}: {message}")

    def _keys(
        self, node: yaml.MappingNode, known: Sequence[str], what: str
    ) -> dict[str, yaml.Node]:
        keys: dict[str, yaml.Node] = {}
        for key_node, value in node.value:
            key = key_node.value if isinstance(key_node, yaml.ScalarNode) else ""
            if key not in known:
                close = difflib.get_close_matches(str(key), known, n=1)
                hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(known)}"
                self._mistake(key_node, f"unknown key {key!r} in a {what}; {hint}")
            elif key in keys:
                self._mistake(key_node, f"the key {key!r} stands twice")
            else:
                keys[key] = value
        return keys

    def _text(self, node: yaml.Node, what: str) -> str | None:
        """A word as written (`no` is a word here, not a boolean), or a mistake and None."""
        if not isinstance(node, yaml.ScalarNode):
            self._mistake(node, f"{what} must be text")
            return None
        text: str = node.value.strip()
        if not text or _is_null(node):
            self._mistake(node, f"{what} is empty")
            return None
        # Joiners (Cf) belong to words of several scripts; controls and half characters to none.
        if any(unicodedata.category(character) in ("Cc", "Cs") for character in text):
            self._mistake(node, f"{what} has characters that belong to no word: {text!r}")
            return None
        return text

    def _items(self, node: yaml.Node | None, what: str) -> Iterator[yaml.Node]:
        if node is None:
            return
        if not isinstance(node, yaml.SequenceNode):
            self._mistake(node, f"{what} must be a list")
        elif not node.value:
            self._mistake(node, f"{what} is an empty list")
        else:
            yield from node.value

    def _name(self, node: yaml.Node | None) -> str:
        name = self._text(node, "name") if node is not None else None
        if node is not None and name is not None and not _NAME.fullmatch(name):
            self._mistake(
                node,
                f"name {name!r} becomes part of a path: use letters, digits, '.', '_' and '-' "
                "(64 at most, a letter or digit first)",
            )
        return name or ""

    def _labels(self, node: yaml.Node | None) -> tuple[Label, ...]:
        labels: list[Label] = []
        first_lines: dict[str, int] = {}
        for item in self._items(node, "labels"):
            label = self._label(item)
            if label is None:
                continue
            line = item.start_mark.line + 1
            if label.name in first_lines:
                self._mistake(
                    item, f"label {label.name!r} stands on line {first_lines[label.name]} already"
                )
            first_lines.setdefault(label.name, line)
            labels.append(label)
        return tuple(labels)

    def _label(self, node: yaml.Node) -> Label | None:
        if not isinstance(node, yaml.MappingNode):
            name = self._text(node, "a label")
            return Label(name) if name else None
        keys = self._keys(node, _LABEL_KEYS, "label")
        if "name" not in keys:
            self._mistake(node, "a label has no 'name'")
            return None
        name = self._text(keys["name"], "a label's name")
        prompts = tuple(
            prompt
            for item in self._items(keys.get("prompts"), "prompts")
            if (prompt := self._text(item, "a prompt"))
        )
        return Label(name, prompts) if name else None

    def _templates(self, node: yaml.Node | None) -> tuple[str, ...]:
        if node is None:
            return DEFAULT_TEMPLATES
        if isinstance(node, yaml.ScalarNode):
            if node.value in ENSEMBLES:
                return builtin_templates(node.value)
            self._mistake(
                node,
                f"no built-in templates are called {node.value!r}: there are "
                f"{', '.join(ENSEMBLES)}; or give a list",
            )
            return DEFAULT_TEMPLATES
        templates = []
        for item in self._items(node, "templates"):
            template = self._text(item, "a template")
            if template is None:
                continue
            if template.count("{}") != 1 or set("{}") & set(template.replace("{}", "")):
                self._mistake(
                    item, f"template {template!r} needs one {{}}, the place where the label goes"
                )
            templates.append(template)
        return tuple(templates)

    def _top_k(self, node: yaml.Node | None) -> int:
        if node is None or _is_null(node):
            return DEFAULT_TOP_K
        number = _number(node)
        if number is None or number < 1 or number != int(number):
            self._mistake(node, "top_k must be a whole number from 1")
            return DEFAULT_TOP_K
        return int(number)

    def _activation(self, node: yaml.Node | None) -> Activation:
        if node is None:
            return "softmax"
        for known in get_args(Activation):
            if isinstance(node, yaml.ScalarNode) and node.value == known:
                return known  # type: ignore[no-any-return]
        self._mistake(node, f"activation must be one of {', '.join(get_args(Activation))}")
        return "softmax"

    def _threshold(self, node: yaml.Node | None, activation: Activation) -> float | None:
        if node is None or _is_null(node):
            return None
        low = -1.0 if activation == "cosine" else 0.0
        number = _number(node)
        if number is None or not low <= number <= 1.0:
            self._mistake(node, f"threshold must be a number from {low:g} to 1 for {activation}")
            return None
        return number


def _is_null(node: yaml.Node) -> bool:
    return bool(node.tag == "tag:yaml.org,2002:null")


def _number(node: yaml.Node) -> float | None:
    if not isinstance(node, yaml.ScalarNode):
        return None
    if node.tag not in ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float"):
        return None
    try:
        return float(node.value)
    except ValueError:
        return None
