"""What has to be right between the labels of a set: names, ids, and the hierarchy."""

from __future__ import annotations

import difflib
import unicodedata
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from transforms.labelentries import Entry
from transforms.labelnodes import List, Page, Word
from transforms.labels import Label, LabelSet

MOST_LEVELS = 64
"""How deep a hierarchy is at most: what is kept of each label grows with it."""

_COMPARED = 200_000
"""Up to how many names are compared with misspelt ones, to suggest what was meant."""

_SHOWN = 12
"""Labels of a cycle that a message names."""


def same(text: str) -> str:
    """What is the same for words that look the same, however they were typed."""
    return unicodedata.normalize("NFC", text)


def check_names(entries: Sequence[Entry]) -> None:
    """Note names and ids that do not tell a label from another."""
    named: dict[str, Entry] = {}
    alone: dict[str, Entry] = {}
    known: dict[str, Entry] = {}
    for entry in entries:
        name, key = same(entry.label.name), same(entry.label.id)
        if name in named and (not key or name in alone):
            first = alone.get(name, named[name])
            needed = "; labels of one name need an id each" if key or first.label.id else ""
            place = first.seen_from(entry.page)
            entry.mistake("name", f"label {entry.label.name!r} stands {place} already{needed}")
        if name:
            named.setdefault(name, entry)
            if not key:
                alone.setdefault(name, entry)
        if key in known:
            place = known[key].seen_from(entry.page)
            entry.mistake("id", f"id {entry.label.id!r} stands {place} already")
        elif key:
            known[key] = entry
    for key, entry in known.items():
        if key in alone:
            place = alone[key].seen_from(entry.page)
            entry.mistake(
                "id",
                f"id {entry.label.id!r} is the name of the label {place}, which has no id of its "
                "own",
            )


def with_parents(entries: Sequence[Entry]) -> list[Label]:
    """The labels, each naming its parent by key; notes what is wrong with the hierarchy."""
    parents = list(_parents(entries))
    labels = [
        entry.label if parent < 0 else replace(entry.label, parent=entries[parent].label.key)
        for entry, parent in zip(entries, parents, strict=True)
    ]
    if all(entry.label.parent is None for entry in entries):
        return labels
    for entry in entries:
        if "/" in entry.label.name:
            entry.mistake(
                "name",
                f"label {entry.label.name!r} has a / in it, which parts the names of a path in a "
                "set with parents",
            )
    rounds = list(_rounds(parents))
    for way in rounds:
        first = entries[way[0]]
        names = [entries[place].label.name for place in [*way, way[0]]]
        if len(way) == 1:
            first.mistake("parent", f"label {names[0]!r} is its own parent")
        else:
            if len(names) > _SHOWN:
                names[_SHOWN - 2 : -1] = ["..."]
            first.mistake("parent", f"the parents go round: {' -> '.join(names)}")
    if not rounds:
        for place, depth in enumerate(_depths(parents)):
            if depth == MOST_LEVELS + 1:
                name = entries[place].label.name
                entries[place].mistake("parent", f"label {name!r} has {MOST_LEVELS} above it")
    return labels


def _parents(entries: Sequence[Entry]) -> Iterator[int]:
    """Of each label the place of its parent, -1 for none and where there is a mistake."""
    ids: dict[str, int] = {}
    names: dict[str, list[int]] = defaultdict(list)
    for place, entry in enumerate(entries):
        if entry.label.id:
            ids.setdefault(same(entry.label.id), place)
        names[same(entry.label.name)].append(place)
    left = _COMPARED
    for entry in entries:
        wanted = entry.label.parent
        if wanted is None:
            yield -1
            continue
        known = ids.get(same(wanted))
        called = names.get(same(wanted), []) if known is None else [known]
        if len(called) == 1:
            yield called[0]
            continue
        yield -1
        if called:
            lines = " and ".join(entries[other].seen_from(entry.page) for other in called[:3])
            entry.mistake("parent", f"parent {wanted!r} is several labels ({lines}): say its id")
            continue
        candidates = [*names, *ids] if left > 0 else []
        left -= len(candidates)
        close = difflib.get_close_matches(wanted, candidates, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        entry.mistake("parent", f"parent {wanted!r} is no label of this set{hint}")


def _rounds(parents: Sequence[int]) -> Iterator[list[int]]:
    """Each cycle once, from its first label on."""
    walk = [-1] * len(parents)
    for start in range(len(parents)):
        way = []
        place = start
        while place >= 0 and walk[place] < 0:
            walk[place] = start
            way.append(place)
            place = parents[place]
        if place >= 0 and walk[place] == start:
            cycle = way[way.index(place) :]
            first = cycle.index(min(cycle))
            yield cycle[first:] + cycle[:first]


def _depths(parents: Sequence[int]) -> list[int]:
    """How many labels are on the way from the root to each, itself included."""
    depths = [0] * len(parents)
    for start in range(len(parents)):
        way = []
        place = start
        while place >= 0 and not depths[place]:
            way.append(place)
            place = parents[place]
        depth = depths[place] if place >= 0 else 0
        for step, node in enumerate(reversed(way), 1):
            depths[node] = depth + step
    return depths


def check_against(label_set: LabelSet, entries: Sequence[Entry]) -> None:
    """Note prompts of `not` that stand for the label as well."""
    for entry, label in zip(entries, label_set.labels, strict=True):
        if label.against:
            own = {same(text).casefold() for text in (label.name, *label_set.prompts_of(label))}
            node = entry.keys["not"]
            for item in node.items if isinstance(node, List) else ():
                if isinstance(item, Word) and same(item.text.strip()).casefold() in own:
                    entry.page.mistake(
                        item, f"{item.text.strip()!r} cannot speak against {label.name!r}: "
                        "it stands for it as well",
                    )  # fmt: skip


def check_background(prompts: Mapping[str, tuple[Page, int]], entries: Sequence[Entry]) -> None:
    """Note background that is a label as well; `prompts` are by where they stand."""
    if not prompts:
        return
    spoken = {same(text): e for e in entries for text in (e.label.name, *e.label.prompts)}
    for prompt, (page, line) in prompts.items():
        entry = spoken.get(same(prompt))
        if entry is not None:
            page.mistake(
                line, f"background {prompt!r} is what a label {entry.seen_from(page)} looks for"
            )
