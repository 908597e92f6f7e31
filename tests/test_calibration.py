"""Temperature and thresholds against brute force, and what is said of whether they help."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import f1_score, log_loss, precision_score, recall_score

from transforms.calibration import best_temperature, calibrate, figures, negative_log_likelihood
from transforms.hierarchy import tree_of
from transforms.labels import Label, LabelSet
from transforms.latest import Items
from transforms.records import LabelVectors
from transforms.scoreshares import ScoreHistogram, find_shares
from transforms.scoring import scores, similarities
from transforms.splitting import Labelled, folds, split
from transforms.thresholds import best_threshold, find_thresholds, with_thresholds

NAMES = tuple("abcdefgh")


def space(
    seed: int = 0,
    activation: str = "softmax",
    parents: tuple[int, ...] = (-1,) * 8,
    extra: int = 0,
    dim: int = 16,
) -> LabelVectors:
    """Eight labels at random, what speaks against the first, and `extra` of background."""
    random = np.random.default_rng(seed)
    vectors = unit(random.normal(size=(len(NAMES) + (1 if extra else 0) + extra, dim)))
    return LabelVectors(
        label_set_id="x-1",
        names=NAMES,
        ids=NAMES,
        paths=NAMES,
        parents=parents,
        vectors=vectors,
        opposed=(0,) if extra else (),
        lengths=np.ones(8, np.float32),
        biases=np.log(random.uniform(0.5, 2, 8)).astype(np.float32) if extra else np.zeros(8, "f"),
        thresholds=(None,) * 8,
        logit_scale=20.0,
        logit_bias=-3.0 if activation == "sigmoid" else 0.0,
        top_k=8,
        activation=activation,
        levels="every",
    )


def unit(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def drawn(labels: LabelVectors, count: int, scale: float, seed: int = 1) -> Labelled:
    """Items whose one label each is drawn from the softmax at another scale."""
    random = np.random.default_rng(seed)
    vectors = unit(random.normal(size=(count, labels.vectors.shape[1])))
    there = replace(labels, logit_scale=scale, parents=(-1,) * 8)
    likely = scores(similarities(vectors, there), there).astype(np.float64)
    likely[:, 0] += 1 - likely.sum(axis=1)
    stated = np.zeros((count, 8), bool)
    stated[
        np.arange(count), [random.choice(8, p=row.clip(0) / row.clip(0).sum()) for row in likely]
    ] = True
    return Labelled(vectors, stated)


TREE = (-1, 0, 0, 1, -1, 4, 4, -1)


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
@pytest.mark.parametrize(("parents", "extra"), [((-1,) * 8, 0), (TREE, 2)])
def test_no_temperature_of_a_fine_grid_is_likelier_than_the_one_found(activation, parents, extra):
    labels = space(3, activation, parents, extra)
    items = drawn(labels, 300, 8.0)
    tree = tree_of(parents)

    def loss(temperature: float) -> float:
        there = replace(labels, logit_scale=1 / temperature)
        score = scores(similarities(items.vectors, there), there, tree)
        return negative_log_likelihood(score, items.stated, labels, tree)

    found = best_temperature(labels, items)
    assert found is not None
    grid = np.geomspace(1e-3, 5, 2000)
    assert loss(found) <= min(map(loss, grid)) + 1e-6
    if not extra and activation == "softmax":
        assert found == pytest.approx(1 / 8.0, rel=0.15)


def test_the_likelihood_is_that_of_scikit_learn_and_an_upper_label_has_what_is_below_it():
    labels = space(3)
    items = drawn(labels, 200, 8.0)
    score = scores(similarities(items.vectors, labels), labels)
    flat = negative_log_likelihood(score, items.stated, labels, tree_of(labels.parents))
    assert flat == pytest.approx(log_loss(items.stated, score), rel=1e-5)
    # Of items that are all a: with b and c below it, whatever of the three.
    labels = space(3, parents=(-1, 0, 0, -1, -1, -1, -1, -1))
    stated = np.zeros((200, 8), bool)
    stated[:, 0] = True
    upper = scores(similarities(items.vectors, labels), labels)
    told = negative_log_likelihood(upper, stated, labels, tree_of(labels.parents))
    assert told == pytest.approx(-np.log(score[:, :3].sum(axis=1)).mean(), rel=1e-5)
    # What stands above a stated label adds nothing; two labels count half each.
    stated[:, 1] = True
    below = negative_log_likelihood(upper, stated, labels, tree_of(labels.parents))
    assert below == pytest.approx(-np.log(upper[:, 1]).mean(), rel=1e-5)
    stated[:, 5] = True
    both = negative_log_likelihood(upper, stated, labels, tree_of(labels.parents))
    assert both == pytest.approx(-np.log(upper[:, [1, 5]]).mean(), rel=1e-5)


def test_items_that_are_all_right_tell_no_temperature():
    labels = space(0)
    items = Labelled(labels.vectors[:8], np.eye(8, dtype=bool))
    assert best_temperature(labels, items) is None
    assert best_temperature(space(0, "cosine"), items) is None


scored = st.lists(
    st.tuples(st.sampled_from([0.0, 1e-6, 0.1, 0.2, 0.25, 0.5, 0.9, 0.999999, 1.0]), st.booleans()),
    min_size=1,
    max_size=12,
)


@given(scored)
def test_no_threshold_has_a_better_f1(pairs):
    score = np.array([value for value, _ in pairs], np.float32)
    truth = np.array([is_true for _, is_true in pairs])
    found = best_threshold(score, truth)
    if not truth.any():
        assert found is None
        return
    best = max(f1_score(truth, score >= least) for least in np.unique(score))
    assert found is not None
    assert 0 <= found <= 1
    assert f1_score(truth, score >= np.float32(found)) == pytest.approx(best)


@given(scored, st.sampled_from([0.5, 0.6, 2 / 3, 0.75, 0.9, 1.0]))
def test_no_threshold_of_a_wanted_precision_has_a_better_recall(pairs, wanted):
    score = np.array([value for value, _ in pairs], np.float32)
    truth = np.array([is_true for _, is_true in pairs])
    found = best_threshold(score, truth, wanted)
    able = [
        recall_score(truth, score >= least)
        for least in np.unique(score)
        if truth.any() and precision_score(truth, score >= least) >= wanted
    ]
    if found is None:
        assert not any(able)
        return
    tags = score >= np.float32(found)
    assert precision_score(truth, tags) >= wanted
    assert recall_score(truth, tags) == max(able)


def test_a_label_of_few_items_has_the_sets_threshold_and_one_of_many_its_own():
    random = np.random.default_rng(0)
    labels = space(1, "cosine")
    kind = np.repeat(np.arange(8), [40, 40, 40, 40, 40, 4, 3, 0])
    vectors = unit(labels.vectors[kind] + random.normal(scale=0.3, size=(len(kind), 16)))
    items = Labelled(vectors, np.eye(8, dtype=bool)[kind])
    found = find_thresholds(labels, items, editable=frozenset("abcdfgh"))
    assert set(found.own) == set("abcd")
    assert found.few == ("f", "g", "h")
    score = scores(similarities(vectors, labels), labels)
    assert found.of_set == best_threshold(score[:, :7].ravel(), items.stated[:, :7].ravel())
    best = [best_threshold(score[:, place], items.stated[:, place]) for place in range(4)]
    for own, alone in zip((found.own[key] for key in "abcd"), best, strict=True):
        low, high = sorted((alone, found.of_set))
        assert low - 1e-4 <= own <= high + 1e-4
    precise = find_thresholds(labels, items, precision=0.9)
    for key, least in precise.own.items():
        place = NAMES.index(key)
        tags = score[:, place] >= np.float32(least)
        assert precision_score(items.stated[:, place], tags) >= 0.9
    told = LabelSet("x", tuple(Label(name, threshold=0.9) for name in NAMES), activation="cosine")
    after = with_thresholds(told, found)
    assert after.threshold == found.of_set
    assert [label.threshold for label in after.labels] == [
        found.own.get(name, 0.9) for name in NAMES
    ]


def test_each_step_is_judged_on_held_out_items_and_a_worse_one_is_not_kept():
    labels = space(3)
    label_set = LabelSet("x", tuple(map(Label, NAMES)), top_k=8)
    fitted, checked = drawn(labels, 200, 8.0, seed=1), drawn(labels, 200, 8.0, seed=2)
    good = calibrate(label_set, labels, fitted, checked)
    assert (good.temperature_helps, good.thresholds_help) == (True, True)
    assert good.before == figures(labels, checked)
    assert good.warmed == figures(replace(labels, logit_scale=1 / good.temperature), checked)
    assert good.warmed.nll < good.before.nll
    assert good.warmed.ece < good.before.ece
    assert good.after == good.tagged
    assert good.after.f1 > good.before.f1
    # Learnt from items of another world, where the best label is wrong unless it is very sure.
    many = drawn(labels, 2000, 8.0, seed=3).vectors
    score = scores(similarities(many, labels), labels)
    many, score = many[score.max(axis=1) > 0.7], score[score.max(axis=1) > 0.7]
    told = np.where(score.max(axis=1) > 0.95, score.argmax(axis=1), score.argmin(axis=1))
    wrong = Labelled(many, np.eye(8, dtype=bool)[told])
    alone = replace(labels, top_k=1)
    bad = calibrate(replace(label_set, top_k=1), alone, wrong, checked)
    assert bad.tagged.f1 < bad.warmed.f1
    assert not bad.thresholds_help
    assert bad.after == (bad.warmed if bad.temperature_helps else bad.before)
    forced = calibrate(replace(label_set, top_k=1), alone, wrong, checked, force=True)
    assert forced.after == forced.tagged
    # Wanted precision: what is missing of it counts, then recall.
    precise = calibrate(label_set, labels, fitted, checked, precision=0.6)
    assert precise.thresholds_help
    assert precise.after.precision > precise.before.precision
    assert precise.after.recall < precise.before.recall == 1


def test_tags_and_their_figures_are_those_of_the_job():
    labels = space(5, parents=TREE)
    items = drawn(labels, 100, 8.0)
    thresholds = (0.4, 0.2, 0.1, 0.1, None, 0.3, 0.3, 0.2)
    told = figures(replace(labels, thresholds=thresholds, top_k=2), items)
    tree = tree_of(TREE)
    score = scores(similarities(items.vectors, labels), labels, tree)
    rows = []
    for row in score:
        passed = {
            at for at in range(8) if thresholds[at] is None or row[at] >= np.float32(thresholds[at])
        }
        ends = sorted(at for at in passed if not any(above(other, at) for other in passed))
        best = sorted(ends, key=lambda at: -row[at])[:2]
        rows.append([any(at == other or above(other, at) for other in best) for at in range(8)])
    truth = [
        [bool(stated[at]) or any(above(o, at) for o in np.flatnonzero(stated)) for at in range(8)]
        for stated in items.stated
    ]
    assert told.precision == pytest.approx(precision_score(truth, rows, average="micro"))
    assert told.recall == pytest.approx(recall_score(truth, rows, average="micro"))
    known = np.array(truth).any(axis=0)
    of_each = f1_score(np.array(truth), np.array(rows), average=None, zero_division=0)
    assert told.f1 == pytest.approx(of_each[known].mean())


def above(label: int, other: int) -> bool:
    """Whether `other` is above `label` in `TREE`."""
    while (label := TREE[label]) >= 0:
        if label == other:
            return True
    return False


@given(
    st.lists(st.integers(0, 6), min_size=1, max_size=80), st.floats(0.05, 0.5), st.integers(0, 99)
)
def test_each_kind_of_item_is_split_by_the_share_and_the_only_one_is_learnt_from(
    kinds, share, seed
):
    stated = np.eye(7, dtype=bool)[kinds]
    fitted, held_out = split(stated, share, seed)
    assert sorted([*fitted, *held_out]) == list(range(len(kinds)))
    for kind in set(kinds):
        count = kinds.count(kind)
        held = sum(kinds[row] == kind for row in held_out)
        assert held == 0 if count == 1 else abs(held - share * count) < 2
    parts = folds(stated, 5, seed)
    checked = sorted(row for _, part in parts for row in part)
    assert checked == [row for row, kind in enumerate(kinds) if kinds.count(kind) > 1]
    for learnt, part in parts:
        assert sorted([*learnt, *part]) == list(range(len(kinds)))
        assert {kinds[row] for row in part} <= {kinds[row] for row in learnt}


@pytest.mark.parametrize("activation", ["softmax", "sigmoid", "cosine"])
def test_without_truth_the_share_of_the_archive_gets_the_label(activation):
    labels = space(2, activation, parents=(-1, 0, 0, -1, -1, -1, -1, -1))
    vectors = unit(np.random.default_rng(0).normal(size=(20_000, 16)))
    parts = (
        Items([""] * len(part), part) for part in np.array_split(vectors, [7, 7, 5000, 12_345])
    )
    found = find_shares(parts, labels, 0.02)
    assert found.items == 20_000
    # As many shares as leaves.
    assert found.wanted.tolist() == pytest.approx([0.04, *[0.02] * 7])
    score = scores(similarities(vectors, labels), labels)
    reached = (score >= np.array(found.thresholds, np.float32)).mean(axis=0)
    assert reached == pytest.approx(found.wanted, rel=0.1)


def test_scores_at_the_ends_have_thresholds_too_and_no_items_have_none():
    histogram = ScoreHistogram(2, "softmax")
    with pytest.raises(ValueError, match="no scores"):
        histogram.thresholds(np.array([0.1, 0.1]))
    histogram.add(np.array([[0, 1], [0, 1], [0, 1], [0, 0]], np.float32))
    low, high = histogram.thresholds(np.array([1.0, 0.5]))
    assert 0 <= low < 1e-6
    assert 1 - 1e-6 < high <= 1
