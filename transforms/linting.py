"""What makes a label file's tags worse though it can be read: findings, each of a kind and a line.

Here are those about a file's keys; `lintwords` has those about its sentences, and `lintvectors`
those about where its labels lie in a model's space.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from transforms.hierarchy import tree_of
from transforms.labellines import LabelLines
from transforms.labels import LabelSet


class Kind(StrEnum):
    """What is found: a closed list, for scripts to go by."""

    MISTAKE = "mistake"
    CUT_PROMPT = "cut_prompt"
    NO_EFFECT = "no_effect"
    IMPOSSIBLE = "impossible"
    NEAR_SYNONYM = "near_synonym"
    NEAR_BACKGROUND = "near_background"
    NEAR_NOT = "near_not"
    DISAGREEING_PROMPTS = "disagreeing_prompts"
    UNKNOWN_LANGUAGE = "unknown_language"
    NEVER_WINS = "never_wins"


ERRORS = (Kind.MISTAKE, Kind.CUT_PROMPT, Kind.NO_EFFECT, Kind.IMPOSSIBLE)
"""The kinds of which each finding is wrong for certain; the others are judgements: warnings."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is found: on which line (`file:line`), and what a person is told."""

    where: str
    kind: Kind
    message: str

    @property
    def is_error(self) -> bool:
        """Whether it is wrong for certain."""
        return self.kind in ERRORS

    @property
    def has_line(self) -> bool:
        """Whether it is about a line, and not about a whole file."""
        return _parted(self.where)[1] > 0

    def __str__(self) -> str:
        return f"{self.where}: {self.kind}: {self.message}"

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        file, line = _parted(self.where)
        level = "error" if self.is_error else "warning"
        return {
            "file": file, "line": line or None, "kind": self.kind, "level": level,
            "message": self.message,
        }  # fmt: skip


def _parted(where: str) -> tuple[str, int]:
    file, _, line = where.rpartition(":")
    return (file, int(line)) if file and line.isdecimal() else (where, 0)


def in_order(findings: Iterable[Finding]) -> list[Finding]:
    """By file and line."""
    return sorted(findings, key=lambda finding: _parted(finding.where))


def mistakes_found(mistakes: Sequence[str], source: str) -> list[Finding]:
    """What the reader of the file `source` has found: `file:line: what`, or without a line."""
    found = []
    for mistake in mistakes:
        line = re.match(r"(.+?:\d+): (.+)", mistake)
        where, message = line.groups() if line else (source, mistake.removeprefix(f"{source}: "))
        found.append(Finding(where, Kind.MISTAKE, message))
    return found


def check_keys(label_set: LabelSet, lines: LabelLines) -> Iterator[Finding]:
    """Find what is written and changes nothing."""

    def told(label: str, key: str, message: str) -> Finding:
        return Finding(lines.key(label, key), Kind.NO_EFFECT, message)

    labels = label_set.labels
    if lines.has("", "templates") and not any(map(label_set.is_templated, labels)):
        yield told("", "templates", "templates are used by no label: each has sentences of its own")
    if lines.has("", "threshold") and all(label.threshold is not None for label in labels):
        yield told("", "threshold", "threshold is used by no label: each has its own")
    if lines.has("", "example_weight") and not label_set.examples:
        yield told("", "example_weight", "example_weight is used by no label: none has examples")
    if label_set.levels == "leaves":
        for label, is_leaf in zip(labels, tree_of(label_set.parents).is_leaf, strict=True):
            if label.threshold is not None and not is_leaf:
                yield told(
                    label.key,
                    "threshold",
                    f"{label.name!r} has labels below it and is never a tag with levels: leaves, "
                    "whatever its threshold",
                )
