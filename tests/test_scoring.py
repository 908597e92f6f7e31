from __future__ import annotations

import datetime
import math

import numpy as np
import pyarrow as pa
import pytest

from transforms.records import LabelVectors
from transforms.schemas import embeddings_schema, predictions_schema
from transforms.scoring import best, embedding_matrix, scores, similarities, tag

NOW = datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC)


def unit(vectors) -> np.ndarray:
    array = np.asarray(vectors, dtype=np.float32)
    return array / np.linalg.norm(array, axis=1, keepdims=True)


def label_vectors(vectors, **changes) -> LabelVectors:
    settings = {
        "label_set_id": "set-0",
        "names": tuple("abcdefgh"[: len(vectors)]),
        "vectors": unit(vectors),
        "logit_scale": 10.0,
        "logit_bias": 0.0,
        "top_k": 2,
        "threshold": None,
        "activation": "softmax",
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
