"""Trees of labels against the same rules, said one label at a time."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_scoring import label_vectors, unit

from transforms.hierarchy import tree_of
from transforms.scoring import scores, select, similarities

DEEPEST = 6


@st.composite
def forests(draw: st.DrawFn) -> tuple[int, ...]:
    """Parents of up to 24 labels in any order, none more than `DEEPEST` below its root."""
    count = draw(st.integers(1, 24))
    parents, depths = [-1] * count, [0] * count
    order = draw(st.permutations(range(count)))
    for number, place in enumerate(order):
        above = draw(st.sampled_from([-1, *order[max(0, number - 3) : number]]))
        if above >= 0 and depths[above] < DEEPEST:
            parents[place], depths[place] = above, depths[above] + 1
    return tuple(parents)


def ways(parents: tuple[int, ...]) -> list[list[int]]:
    """What is above each label, the nearest first."""
    found = []
    for place in range(len(parents)):
        way = []
        while (place := parents[place]) >= 0:
            way.append(place)
        found.append(way)
    return found


def below(parents: tuple[int, ...]) -> list[list[int]]:
    """What is below each label, however deep."""
    above = ways(parents)
    return [[p for p in range(len(parents)) if label in above[p]] for label in range(len(parents))]


@settings(max_examples=200, deadline=None)
@given(forests(), st.integers(0, 2**32 - 1))
def test_a_forest_is_what_each_of_its_labels_says(parents, seed):
    tree = tree_of(parents)
    above, under = ways(parents), below(parents)
    assert [[place for place in row if place >= 0] for row in tree.above.tolist()] == above
    assert tree.is_leaf.tolist() == [not labels for labels in under]
    assert len(tree.levels) == max(map(len, above))

    random = np.random.default_rng(seed)
    score = random.random((5, len(parents)), np.float32)
    added = np.array([[row[n] + sum(row[under[n]]) for n in range(len(parents))] for row in score])
    assert tree.sum_below(score.copy()) == pytest.approx(added, rel=1e-5)
    most = [[max([row[n], *row[under[n]]]) for n in range(len(parents))] for row in score]
    assert tree.at_least_below(score.copy()).tolist() == most
    chosen = random.random(score.shape) < 0.3
    expected = [[bool(row[labels].any()) for labels in under] for row in chosen]
    assert tree.any_below(chosen).tolist() == expected

    places = np.stack([random.permutation(len(parents))[:3] for _ in range(5)])
    places[random.random(places.shape) < 0.2] = -1
    for row, found in zip(places.tolist(), tree.with_above(places).tolist(), strict=True):
        told = [way for place in row if place >= 0 for way in (place, *above[place])]
        # Each once, where it stands first.
        assert [place for place in found if place >= 0] == list(dict.fromkeys(told))


def tags_by_hand(row, parents, thresholds, levels, top_k) -> list[int]:
    """The stated rule: of the surest ends the best, each with what is above it behind it."""
    above, under = ways(parents), below(parents)
    labels = range(len(parents))
    if all(threshold is None for threshold in thresholds):
        ends = [n for n in labels if not under[n]]
    else:
        passes = [thresholds[n] is None or row[n] >= np.float32(thresholds[n]) for n in labels]
        ends = [n for n in labels if passes[n] and not any(passes[m] for m in under[n])]
        if levels == "leaves":
            ends = [n for n in ends if not under[n]]
    best = sorted(ends, key=lambda n: -row[n])[:top_k]
    told = [way for n in best for way in (n, *(above[n] if levels == "every" else ()))]
    return list(dict.fromkeys(told))


@settings(max_examples=150, deadline=None)
@given(
    forests(),
    st.integers(0, 2**32 - 1),
    st.sampled_from(["softmax", "sigmoid", "cosine"]),
    st.sampled_from(["every", "deepest", "leaves"]),
    st.sampled_from(["none", "one", "own"]),
    st.integers(1, 25),
)
def test_scores_and_tags_of_a_forest_are_those_of_the_rule(
    parents, seed, activation, levels, thresholds, top_k
):
    random = np.random.default_rng(seed)
    count = len(parents)
    own = {
        "none": (None,) * count,
        "one": (0.3,) * count,
        "own": tuple(random.choice([None, 0.05, 0.2, 0.5, 0.9], count).tolist()),
    }[thresholds]
    labels = label_vectors(
        random.normal(size=(count, 8)), names=tuple(f"label {n}" for n in range(count)),
        parents=parents, thresholds=own, activation=activation, levels=levels, top_k=top_k,
        logit_scale=5.0,
    )  # fmt: skip
    similarity = similarities(unit(random.normal(size=(20, 8))), labels)
    score = scores(similarity, labels)
    under = below(parents)
    if activation == "softmax":
        plain = np.exp(5.0 * similarity)
        plain /= plain.sum(axis=1, keepdims=True)
        summed = np.stack([plain[:, [n, *under[n]]].sum(axis=1) for n in range(count)], axis=1)
        assert score == pytest.approx(summed, rel=1e-4)
    else:
        plain = similarity if activation == "cosine" else 1 / (1 + np.exp(-5.0 * similarity))
        most = np.stack([plain[:, [n, *under[n]]].max(axis=1) for n in range(count)], axis=1)
        assert score == pytest.approx(most, rel=1e-5)
    for child, parent in enumerate(parents):
        assert parent < 0 or (score[:, parent] >= score[:, child]).all()
    for row, places in zip(score, select(score, labels).tolist(), strict=True):
        found = [place for place in places if place >= 0]
        assert found == tags_by_hand(row, parents, own, levels, top_k)


def test_a_chain_as_deep_as_a_file_may_have_it():
    parents = (*range(1, 64), -1)
    tree = tree_of(parents)
    assert tree.above.shape == (64, 63)
    assert tree.sum_below(np.ones((1, 64), np.float32))[0].tolist() == list(range(1, 65))
    (found,) = tree.with_above(np.array([[0]])).tolist()
    assert found == list(range(64))


def test_a_set_without_a_hierarchy_has_no_levels():
    tree = tree_of((-1, -1, -1))
    score = np.float32([[3, 1, 2]])
    assert tree.levels == ()
    assert tree.is_leaf.all()
    assert (tree.sum_below(score) == [[3, 1, 2]]).all()
    assert tree.with_above(np.array([[2, -1]])).tolist() == [[2, -1]]
