from __future__ import annotations

import datetime
import math

import numpy as np
import pyarrow as pa
import pytest

from transforms.labels import paths_of
from transforms.records import LabelVectors
from transforms.schemas import embeddings_schema, predictions_schema
from transforms.scoring import best, embedding_matrix, scores, select, similarities, tag

NOW = datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC)


def unit(vectors) -> np.ndarray:
    array = np.asarray(vectors, dtype=np.float32)
    return array / np.linalg.norm(array, axis=1, keepdims=True)


def label_vectors(vectors, **changes) -> LabelVectors:
    names = changes.pop("names", None) or tuple("abcdefgh"[: len(vectors)])
    parents = changes.pop("parents", (-1,) * len(names))
    threshold = changes.pop("threshold", None)
    settings = {
        "label_set_id": "set-0",
        "names": names,
        "ids": names,
        "paths": paths_of(names, parents),
        "parents": parents,
        "vectors": unit(vectors),
        "opposed": (),
        "lengths": np.ones(len(names), np.float32),
        "biases": np.zeros(len(names), np.float32),
        "thresholds": (threshold,) * len(names),
        "logit_scale": 10.0,
        "logit_bias": 0.0,
        "top_k": 2,
        "activation": "softmax",
        "levels": "every",
    }
    return LabelVectors(**{**settings, **changes})


def embedded(vectors) -> pa.RecordBatch:
    vectors = np.asarray(vectors, dtype=np.float32)
    schema = embeddings_schema(vectors.shape[1])
    rows = [
        {
            "uri": f"u{row}", "version": "1", "modality": "image", "content_sha256": "0",
            "width": 1, "height": 1, "bytes": 1, "embedding": vector, "run_id": "r",
            "embedded_at": NOW,
        }
        for row, vector in enumerate(vectors)
    ]  # fmt: skip
    return pa.RecordBatch.from_pylist(rows, schema=schema)


def rows(vectors, labels: LabelVectors) -> list[dict]:
    return tag(embedded(vectors), labels, "run", NOW).to_pylist()


def test_softmax_over_the_set():
    labels = label_vectors([[1, 0], [0, 1], [1, 1]])
    similarity = similarities(unit([[3, 1], [-1, 2]]), labels)
    for row, expected in zip(scores(similarity, labels), similarity, strict=True):
        powers = [math.exp(10.0 * float(value)) for value in expected]
        assert row == pytest.approx([power / sum(powers) for power in powers], abs=1e-5)


def test_softmax_survives_large_logits():
    labels = label_vectors([[1, 0], [0, 1]], logit_scale=1e4)
    assert scores(similarities(unit([[1, 0]]), labels), labels).tolist() == [[1.0, 0.0]]


def test_sigmoid_with_scale_and_bias():
    labels = label_vectors([[1, 0], [0, 1]], activation="sigmoid", logit_bias=-5.0)
    similarity = similarities(unit([[3, 1], [-1, 0]]), labels)
    expected = 1 / (1 + np.exp(-(10.0 * similarity.astype(np.float64) - 5.0)))
    assert scores(similarity, labels) == pytest.approx(expected, abs=1e-6)
    extreme = label_vectors([[1, 0], [-1, 0]], activation="sigmoid", logit_scale=1e4)
    assert scores(similarities(unit([[1, 0]]), extreme), extreme).tolist() == [[1.0, 0.0]]


def test_cosine_is_the_similarity():
    labels = label_vectors([[1, 0], [0, 1]], activation="cosine")
    similarity = similarities(unit([[3, 1]]), labels)
    assert (scores(similarity, labels) == similarity).all()


def test_best_first_and_ties_in_the_order_of_the_file():
    score = np.array([[0.1, 0.5, 0.5, 0.2]], dtype=np.float32)
    assert best(score, 3).tolist() == [[1, 2, 3]]
    assert best(score, 9).shape == (1, 4)


def test_a_row_per_tag():
    labels = label_vectors([[1, 0], [0, 1], [1, 1]], activation="cosine")
    found = rows([[1, 0], [0, 1]], labels)
    assert [(row["uri"], row["rank"], row["label"]) for row in found] == [
        ("u0", 1, "a"), ("u0", 2, "c"), ("u1", 1, "b"), ("u1", 2, "c"),
    ]  # fmt: skip
    assert found[0]["score"] == pytest.approx(1.0)
    assert found[1]["similarity"] == pytest.approx(math.sqrt(0.5))
    assert found[0]["run_id"] == "run"
    assert found[0]["tagged_at"] == NOW


def test_looked_at_and_nothing_found_is_a_row_too():
    labels = label_vectors([[1, 0], [0, 1]], activation="cosine", threshold=0.9)
    found = rows(unit([[1, 1], [1, 0]]), labels)
    assert [(row["uri"], row["rank"], row["label"], row["score"]) for row in found] == [
        ("u0", 0, None, None), ("u1", 1, "a", 1.0),
    ]  # fmt: skip
    assert found[0]["similarity"] is None


def test_a_score_at_the_threshold_counts():
    labels = label_vectors([[1, 0], [0, 1]], activation="cosine", threshold=1.0)
    assert [row["label"] for row in rows([[1, 0]], labels)] == ["a"]


def test_no_items_no_rows():
    labels = label_vectors([[1, 0], [0, 1]], threshold=0.5)
    empty = tag(embedded(np.empty((0, 2))), labels, "run", NOW)
    assert empty.num_rows == 0
    assert empty.schema == predictions_schema()


def test_slices_of_embeddings_are_their_own_rows():
    batch = embedded([[1, 0], [0, 1], [1, 1]]).slice(1, 2)
    assert embedding_matrix(batch).tolist() == [[0, 1], [1, 1]]
    labels = label_vectors([[1, 0], [0, 1]], activation="cosine", top_k=1)
    assert [row["uri"] for row in tag(batch, labels, "r", NOW).to_pylist()] == ["u1", "u2"]


# A hierarchy: animal (0) over mammal (1) over dog (2) and cat (3); thing (4) over car (5).
PARENTS = (-1, 0, 1, 1, -1, 4)
NAMES = ("animal", "mammal", "dog", "cat", "thing", "car")


def tree_vectors(**changes) -> LabelVectors:
    vectors = np.random.default_rng(3).normal(size=(6, 8))
    return label_vectors(vectors, **{"names": NAMES, "parents": PARENTS, "top_k": 6, **changes})


def by_hand(score: np.ndarray, labels: LabelVectors) -> list[list[str]]:
    """The rule, label by label: surest ends, best first, each with what is above it."""
    children = {n: [c for c, p in enumerate(PARENTS) if p == n] for n in range(6)}

    def passes(row, label: int) -> bool:
        threshold = labels.thresholds[label]
        return row[label] >= threshold if threshold is not None else not children[label]

    def any_below(row, label: int) -> bool:
        return any(passes(row, child) or any_below(row, child) for child in children[label])

    told = []
    for row in score:
        ends = [label for label in range(6) if passes(row, label) and not any_below(row, label)]
        if labels.levels == "leaves":
            ends = [label for label in ends if not children[label]]
        tags: list[int] = []
        for end in sorted(ends, key=lambda label: -row[label])[: labels.top_k]:
            while end >= 0:
                tags += [] if end in tags else [end]
                end = PARENTS[end] if labels.levels == "every" else -1
        told.append([NAMES[tag] for tag in tags])
    return told


@pytest.mark.parametrize("activation", ["softmax", "sigmoid", "cosine"])
@pytest.mark.parametrize("levels", ["every", "deepest", "leaves"])
@pytest.mark.parametrize("threshold", [None, 0.1, 0.3, 0.6])
def test_tags_of_a_hierarchy_are_consistent(activation, levels, threshold):
    embeddings = unit(np.random.default_rng(1).normal(size=(200, 8)))
    for top_k in (1, 2, 6):
        labels = tree_vectors(
            activation=activation, levels=levels, threshold=threshold, top_k=top_k
        )
        score = scores(similarities(embeddings, labels), labels)
        found = [[NAMES[tag] for tag in row if tag >= 0] for row in select(score, labels)]
        assert found == by_hand(score, labels)
        for child, parent in enumerate(PARENTS):
            if parent >= 0:
                # Never below the child's, whatever the activation.
                assert (score[:, parent] >= score[:, child]).all()
                if levels == "every":
                    name, above = NAMES[child], NAMES[parent]
                    assert all(above in tags for tags in found if name in tags)


def test_a_threshold_of_a_labels_own():
    thresholds = (None, 0.99, None, 0.01, None, 0.01)
    labels = tree_vectors(thresholds=thresholds, levels="deepest", activation="sigmoid")
    embeddings = unit(np.random.default_rng(1).normal(size=(50, 8)))
    score = scores(similarities(embeddings, labels), labels)
    for row, tags in zip(score, select(score, labels), strict=True):
        for tag_ in tags[tags >= 0]:
            assert thresholds[tag_] is None or row[tag_] >= thresholds[tag_]


def test_softmax_of_a_hierarchy_is_a_probability():
    labels = tree_vectors()
    embeddings = unit(np.random.default_rng(1).normal(size=(50, 8)))
    similarity = similarities(embeddings, labels)
    score = scores(similarity, labels)
    plain = np.exp(10.0 * similarity)
    plain /= plain.sum(axis=1, keepdims=True)
    assert score[:, 0] == pytest.approx(plain[:, :4].sum(axis=1), abs=1e-6)
    assert score[:, 1] == pytest.approx(plain[:, 1:4].sum(axis=1), abs=1e-6)
    assert score[:, [0, 4]].sum(axis=1) == pytest.approx(1, abs=1e-6)


def test_the_background_takes_part_and_is_no_tag():
    labels = label_vectors([[1, 0], [0, 1], [1, 1]], names=("a", "b"), top_k=9)
    assert len(labels.vectors) == 3
    (score,) = scores(similarities(unit([[1, 1]]), labels), labels)
    powers = np.exp(10 * np.array([0.5**0.5, 0.5**0.5, 1]))
    assert score == pytest.approx(powers[:2] / powers.sum(), rel=1e-5)
    assert [row["label"] for row in rows([[1, 1]], labels)] == ["a", "b"]


@pytest.mark.parametrize("activation", ["softmax", "sigmoid", "cosine"])
def test_what_speaks_against_a_label(activation):
    plain = label_vectors([[1, 0, 0], [0, 1, 0]], names=("a", "b"), activation=activation)
    spoken = label_vectors(
        [[1, 0, 0], [0, 1, 0], [1, 0, 1]], names=("a", "b"), opposed=(0,), activation=activation
    )
    embeddings = unit([[1, 0, 0.1], [1, 0, 1], [0, 1, 0]])
    before = scores(similarities(embeddings, plain), plain)
    after = scores(similarities(embeddings, spoken), spoken)
    assert (after[:, 0] <= before[:, 0]).all()
    # Where the picture is what the label is not, it loses most of its score.
    assert after[1, 0] < 0.6 * before[1, 0]
    assert after[0, 0] > after[1, 0]
    assert (after[:, 1] == before[:, 1]).all()
    if activation != "cosine":
        own, against = np.exp(10 * embeddings[:, 0]), np.exp(10 * embeddings @ unit([[1, 0, 1]])[0])
        assert after[:, 0] == pytest.approx(before[:, 0] * own / (own + against), rel=1e-4)
    else:
        own, against = embeddings[:, 0], embeddings @ unit([[1, 0, 1]])[0]
        assert after[:, 0] == pytest.approx(np.minimum(own, 2 * own - against), abs=1e-6)


def test_a_weight_is_on_the_odds():
    labels = label_vectors([[1, 0], [0, 1]], biases=np.log(np.float32([3, 1])))
    assert scores(np.float32([[0.5, 0.5]]), labels)[0] == pytest.approx([0.75, 0.25])


def test_many_labels_and_rows_are_scored_in_parts(monkeypatch):
    random = np.random.default_rng(0)
    labels = label_vectors(random.normal(size=(50, 16)), names=tuple(map(str, range(50))))
    vectors = unit(random.normal(size=(333, 16)))
    whole = rows(vectors, labels)
    monkeypatch.setattr("transforms.scoring.PRODUCTS_AT_ONCE", 50 * 40)
    monkeypatch.setattr("transforms.scoring.SCORES_AT_ONCE", 50 * 7)
    parted = rows(vectors, labels)
    assert [(r["uri"], r["label"], r["rank"]) for r in parted] == [
        (r["uri"], r["label"], r["rank"]) for r in whole
    ]
    assert [r["score"] for r in parted] == pytest.approx([r["score"] for r in whole], rel=1e-5)


def test_the_best_of_many_are_the_first_of_a_stable_sort():
    random = np.random.default_rng(0)
    score = random.integers(0, 20, (100, 60)).astype(np.float32)
    for top_k in (1, 5, 17, 60):
        expected = np.argsort(-score, axis=1, kind="stable")[:, :top_k]
        assert (best(score, top_k) == expected).all()
