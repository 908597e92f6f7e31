"""Values written back into a label file's text: comments, order and all else stay as they are.

Nothing is dumped: the text is edited where the YAML's nodes begin and end, and then read again, so
that what comes out is known to say what was meant.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from decimal import Decimal
from typing import NamedTuple

import yaml

from transforms.labelfile import parse_label_set
from transforms.labelnodes import LabelFileError
from transforms.labels import LabelSet

_LOADER: type[yaml.SafeLoader] | type[yaml.CSafeLoader] = (
    yaml.CSafeLoader if yaml.__with_libyaml__ else yaml.SafeLoader
)
# YAML's own line ends too, which `str.splitlines` has more of.
_LINE_END = re.compile(r"\r\n|[\n\r\x85\u2028\u2029]|$")
_Label = yaml.ScalarNode | yaml.MappingNode
_SET_KEYS = ("temperature", "threshold")


class EditError(Exception):
    """A label file cannot be edited as asked; the message is one line."""


class _Edit(NamedTuple):
    """Put `text` in place of what stands from `start` to `end`."""

    start: int
    end: int
    text: str


def own_keys(text: str) -> frozenset[str]:
    """The keys of the labels that a file lists itself, and does not include.

    `text` is of a file that `parse_label_set` takes.
    """
    return frozenset(key for key, _ in _labels(_root(text)))


def edited(
    text: str,
    source: str,
    target: str,
    *,
    thresholds: Mapping[str, float] | None = None,
    **of_set: float,
) -> str:
    """The text of the label file `source` with new values, to be written to `target`.

    `thresholds` are by the labels' keys; `of_set` is the set's `temperature` or `threshold`. A
    value that is there is replaced, another one is put behind the name. Raises `EditError` for
    labels that stand in another file, for a text that does not take the values, and for a target
    from which the files that the text names are not found.
    """
    if foreign := of_set.keys() - set(_SET_KEYS):
        raise TypeError(f"no value of a set: {', '.join(sorted(foreign))}")
    wanted = dict(thresholds or {})
    before = parse_label_set(text, source)
    _check_target(text, source, target, before)
    root = _root(text)
    edits = [_set_value(root, name, value, text) for name, value in of_set.items()]
    for key, node in _labels(root):
        if key in wanted:
            edits.append(_set_value(node, "threshold", wanted.pop(key), text))
    if wanted:
        raise EditError(f"{source} does not list {', '.join(sorted(wanted)[:5])} itself")
    result = _apply(text, edits)
    meant = replace(
        before,
        labels=tuple(
            replace(label, threshold=(thresholds or {}).get(label.key, label.threshold))
            for label in before.labels
        ),
        **of_set,  # type: ignore[arg-type]
    )
    if _reading(result, source) != meant:
        raise EditError(f"{source} is written in a way that its values cannot be changed in place")
    return result


def plain_number(value: float) -> str:
    """A number in digits alone, which every reader of YAML takes for the same float."""
    return f"{Decimal(repr(float(value))):f}"


def _check_target(text: str, source: str, target: str, before: LabelSet) -> None:
    # What a file names is looked for beside it.
    if _reading(text, target) != before:
        raise EditError(
            f"{source} names files beside it, which {target} would not find: write into the same "
            "folder"
        )


def _reading(text: str, source: str) -> LabelSet | None:
    try:
        return parse_label_set(text, source)
    except LabelFileError:
        return None


def _root(text: str) -> yaml.MappingNode:
    root = yaml.compose(text, Loader=_LOADER)
    if not isinstance(root, yaml.MappingNode):
        raise ValueError("not a label file")
    return root


def _labels(root: yaml.MappingNode) -> Iterator[tuple[str, _Label]]:
    """The labels of a file, and the key of each."""
    listed = _value(root, "labels")
    for node in listed.value if isinstance(listed, yaml.SequenceNode) else ():
        if isinstance(node, yaml.ScalarNode):
            yield node.value.strip(), node
        elif isinstance(node, yaml.MappingNode):
            told = _value(node, "id") or _value(node, "name")
            if told is not None:
                yield str(told.value).strip(), node


def _value(node: yaml.MappingNode, key: str) -> yaml.Node | None:
    for name, value in node.value:
        if isinstance(name, yaml.ScalarNode) and name.value == key:
            found: yaml.Node = value
            return found
    return None


def _set_value(node: _Label, key: str, value: float, text: str) -> _Edit:
    """How a map, or a label that is only a word, gets a number."""
    number = plain_number(value)
    if isinstance(node, yaml.ScalarNode):
        return _widened(node, f"{key}: {number}", text)
    there = _value(node, key)
    if there is not None:
        start, end = there.start_mark.index, there.end_mark.index
        # Nothing behind the colon, which a value must not touch.
        return _Edit(start, end, number if start < end else f" {number}")
    name = _value(node, "name")
    if name is None:
        raise EditError(f"line {node.start_mark.line + 1}: a label without a name")
    if node.flow_style:
        return _Edit(name.end_mark.index, name.end_mark.index, f", {key}: {number}")
    column = node.value[0][0].start_mark.column
    if name.start_mark.line == name.end_mark.line:
        # Behind the rest of its line, which can only be a comment.
        return _line_after(name.end_mark.index, " " * column + f"{key}: {number}", text)
    first = node.value[0][0].start_mark
    return _Edit(first.index, first.index, f"{key}: {number}\n{' ' * column}")


def _widened(node: yaml.ScalarNode, pair: str, text: str) -> _Edit:
    """A label that is only a word, as a map of its name and one more pair."""
    start, end = node.start_mark, node.end_mark
    written = text[start.index : end.index]
    if start.line != end.line or not _is_block_item(text, start.index):
        name = written
        # What is plain in a block may mean something in braces.
        if node.style in ("|", ">") or start.line != end.line or set(written) & set(",[]{}"):
            name = json.dumps(node.value.strip(), ensure_ascii=False)
        tail = "\n" if written.endswith("\n") else ""
        return _Edit(start.index, end.index, f"{{name: {name}, {pair}}}{tail}")
    rest = _LINE_END.search(text, end.index)
    assert rest is not None
    behind = text[end.index : rest.start()]
    newline = rest[0] or "\n"
    indent = " " * start.column
    return _Edit(
        start.index, rest.start(), f"name: {written}{behind.rstrip()}{newline}{indent}{pair}"
    )


def _is_block_item(text: str, start: int) -> bool:
    """Whether what begins here stands behind the dash of a block list, on the dash's line."""
    line = text.rfind("\n", 0, start) + 1
    return text[line:start].strip() == "-"


def _line_after(place: int, line: str, text: str) -> _Edit:
    rest = _LINE_END.search(text, place)
    assert rest is not None
    return _Edit(rest.start(), rest.start(), f"{rest[0] or chr(10)}{line}")


def _apply(text: str, edits: Iterable[_Edit]) -> str:
    parts = []
    done = 0
    for edit in sorted(edits, key=lambda edit: edit.start):
        parts += [text[done : edit.start], edit.text]
        done = edit.end
    return "".join([*parts, text[done:]])
