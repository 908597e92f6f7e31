"""Two label sets on the same vectors: every count against one item at a time, in plain Python."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transforms import labeldiff
from transforms.labeldiff import LEAST_CHANGE, compare
from transforms.labelpairs import Pairing, pair_labels
from transforms.labels import Label, LabelSet
from transforms.latest import Items
from transforms.records import LabelVectors
from transforms.scoring import scores, select, similarities


def a_set(*labels: Label | str) -> LabelSet:
    return LabelSet("s", tuple(Label(one) if isinstance(one, str) else one for one in labels))


def placed(label_set: LabelSet, random: np.random.Generator) -> LabelVectors:
    """A set in a space of four dimensions, where chance puts it."""
    count = len(label_set.labels)
    background = len(label_set.background)
    vectors = random.normal(size=(count + background, 4)).astype(np.float32)
    return LabelVectors(
        label_set_id="s",
        names=tuple(label.name for label in label_set.labels),
        ids=tuple(label.key for label in label_set.labels),
        paths=label_set.paths,
        parents=label_set.parents,
        vectors=vectors / np.linalg.norm(vectors, axis=1, keepdims=True),
        opposed=(),
        lengths=np.ones(count, np.float32),
        biases=np.zeros(count, np.float32),
        thresholds=tuple(label_set.threshold_of(label) for label in label_set.labels),
        logit_scale=5.0,
        logit_bias=0.0,
        top_k=label_set.top_k,
        activation=label_set.activation,
        levels=label_set.levels,
    )


@st.composite
def label_sets(draw: st.DrawFn) -> LabelSet:
    names = draw(st.lists(st.sampled_from("abcdefgh"), min_size=2, max_size=8, unique=True))
    labels = []
    for place, name in enumerate(names):
        parent = draw(st.sampled_from([None, *names[:place]]))
        threshold = draw(st.sampled_from([None, None, 0.1, 0.6]))
        labels.append(Label(name, parent=parent, threshold=threshold))
    activation = draw(st.sampled_from(["softmax", "sigmoid", "cosine"]))
    return LabelSet(
        "s",
        tuple(labels),
        activation=activation,
        threshold=draw(st.sampled_from([None, 0.2])),
        top_k=draw(st.integers(1, 4)),
        levels=draw(st.sampled_from(["every", "deepest", "leaves"])),
        background=("nothing",) if activation == "softmax" else (),
    )


def told(vector: np.ndarray, labels: LabelVectors) -> tuple[dict[str, float], list[str]]:
    """An item's scores, and its tags with the best first."""
    score = scores(similarities(vector[None], labels), labels)
    places = select(score, labels)[0].tolist()
    by_name = dict(zip(labels.names, score[0].tolist(), strict=True))
    return by_name, [labels.names[place] for place in places if place >= 0]


@settings(max_examples=60, deadline=None)
@given(label_sets(), label_sets(), st.integers(0, 60), st.integers(0, 2**31), st.integers(1, 5))
def test_counts_are_those_of_one_item_at_a_time(old_set, new_set, count, seed, top):
    random = np.random.default_rng(seed)
    old, new = placed(old_set, random), placed(new_set, random)
    vectors = random.normal(size=(count, 4)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    uris = [f"u{number}" for number in range(count)]
    parts = [Items(uris[at : at + 17], vectors[at : at + 17]) for at in range(0, count, 17)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(labeldiff, "SCORES_AT_ONCE", 60)
        found = compare(parts, old, new, pair_labels(old_set, new_set), top)

    counts: dict[str, Counter[str]] = defaultdict(Counter)
    moves: Counter[tuple[str, str]] = Counter()
    changes = []
    totals: Counter[str] = Counter()
    for uri, vector in zip(uris, vectors, strict=True):
        (was, before), (is_, after) = told(vector, old), told(vector, new)
        for name in {*before, *after}:
            counts[name]["before"] += name in before
            counts[name]["after"] += name in after
            counts[name]["gained"] += name not in before
            counts[name]["lost"] += name not in after
        if before and after and before[0] != after[0]:
            moves[before[0], after[0]] += 1
        totals["retagged"] += set(before) != set(after)
        totals["untagged_before"] += not before
        totals["untagged_after"] += not after
        change = 0.0
        for name in {*was, *is_}:
            lacking = old_set if name not in was else new_set if name not in is_ else None
            having = new_set if lacking is old_set else old_set
            if lacking is None or having.activation != "cosine":
                change += abs(is_.get(name, 0) - was.get(name, 0))
        changes.append((change, uri, [(n, was[n]) for n in before], [(n, is_[n]) for n in after]))

    assert found.items == count
    assert (found.retagged, found.untagged_before, found.untagged_after) == (
        totals["retagged"], totals["untagged_before"], totals["untagged_after"],
    )  # fmt: skip
    assert {label.label_id for label in found.labels} == {*old.names, *new.names}
    for label in found.labels:
        expected = counts[label.label_id]
        got = {name: getattr(label, name) for name in ("before", "after", "gained", "lost")}
        assert got == {name: expected[name] for name in got}
        away = {pair: times for pair, times in moves.items() if pair[0] == label.label_id}
        assert label.moved == sum(away.values())
        titles = dict(zip([each.label_id for each in found.labels], found.labels, strict=True))
        assert [move.items for move in label.moved_to] == sorted(away.values(), reverse=True)[:3]
        for move in label.moved_to:
            names = [n for n, each in titles.items() if each.label == move.after]
            assert move.items == moves[label.label_id, names[0]]
        is_old, is_new = label.label_id in old.names, label.label_id in new.names
        assert label.sets == ("both" if is_old and is_new else "old" if is_old else "new")
    assert found.moved == moves.total()
    assert [move.items for move in found.moves] == [n for _, n in moves.most_common(top)]

    changes = [each for each in changes if each[0] >= LEAST_CHANGE]
    most = sorted((each[0] for each in changes), reverse=True)[:top]
    assert [item.change for item in found.items_most_changed] == pytest.approx(most, abs=1e-5)
    by_uri = {uri: rest for _, uri, *rest in changes}
    last = {path: path.split("/")[-1] for path in (*old.paths, *new.paths)}
    for item in found.items_most_changed:
        for tags, expected in zip((item.before, item.after), by_uri[item.uri], strict=True):
            assert [last[tag.label] for tag in tags] == [name for name, _ in expected]
            assert [tag.score for tag in tags] == pytest.approx([s for _, s in expected], abs=1e-5)


def paired(old: LabelSet, new: LabelSet) -> set[tuple[str, str]]:
    pairing: Pairing = pair_labels(old, new)
    places = {column: place for place, column in enumerate(pairing.new.tolist())}
    return {
        (old.labels[place].key, new.labels[places[column]].key)
        for place, column in enumerate(pairing.old.tolist())
        if column in places
    }


def test_labels_are_paired_by_id_else_by_name():
    old = a_set(
        Label("dog", id="1"), Label("cat"), Label("crane", id="3"), Label("crane", id="4"),
        Label("cow", id="5"), Label("gone"), Label("e\u0301cole"),
    )  # fmt: skip
    new = a_set(
        Label("hound", id="1"), Label("cat", id="2"), Label("crane"), Label("cow", id="9"),
        Label("added"), Label("\u00e9cole"),
    )  # fmt: skip
    assert paired(old, new) == {("1", "1"), ("cat", "2"), ("e\u0301cole", "\u00e9cole")}
    pairing = pair_labels(old, new)
    assert dict(zip(pairing.titles, pairing.was, strict=True)) == {
        "hound": "dog", "cat": None, "crane": None, "cow (9)": None, "added": None,
        "\u00e9cole": "e\u0301cole", "crane (3)": None, "crane (4)": None, "cow (5)": None,
        "gone": None,
    }  # fmt: skip
    # An id may be what was a name: the tables' label_id is the same.
    assert paired(a_set("dog", "cat"), a_set(Label("Hund", id="dog"), "cow")) == {("dog", "dog")}


def test_a_set_beside_itself_changes_nothing():
    random = np.random.default_rng(0)
    label_set = a_set("a", "b", "c")
    labels = placed(label_set, random)
    turned = a_set("c", "a", "b")
    order = [2, 0, 1]
    same = replace(
        labels,
        names=turned_names(labels.names, order),
        ids=turned_names(labels.ids, order),
        vectors=labels.vectors[order],
    )
    vectors = random.normal(size=(500, 4)).astype(np.float32)
    items = Items([str(row) for row in range(500)], vectors)
    found = compare([items], labels, same, pair_labels(label_set, turned), 10)
    assert (found.items, found.retagged, found.moved) == (500, 0, 0)
    assert (found.moves, found.items_most_changed) == ((), ())
    assert all(label.before == label.after and not label.size for label in found.labels)


def turned_names(names: tuple[str, ...], order: list[int]) -> tuple[str, ...]:
    return tuple(names[place] for place in order)


def test_the_rarest_moves_are_forgotten_where_there_are_too_many(monkeypatch):
    monkeypatch.setattr(labeldiff, "MOST_PAIRS", 1)
    names = [str(number) for number in range(8)]
    label_set = LabelSet("s", tuple(Label(name) for name in names), top_k=1)
    eye = np.eye(8, dtype=np.float32)
    old = replace(placed(label_set, np.random.default_rng(0)), vectors=eye)
    new = replace(old, vectors=np.roll(eye, 1, axis=0))
    kinds = [0] * 5 + list(range(1, 8))
    parts = [Items([str(at)], eye[[kind]]) for at, kind in enumerate(kinds)]
    found = compare(parts, old, new, pair_labels(label_set, label_set), 3)
    assert found.moved == 12
    assert (found.moves[0].before, found.moves[0].after, found.moves[0].items) == ("0", "1", 5)
    assert sum(label.moved for label in found.labels) == 12
