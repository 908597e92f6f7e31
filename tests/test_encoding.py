from __future__ import annotations

import numpy as np
import pytest
from fakes import FakeModel

from transforms.encoding import embed_batch
from transforms.records import (
    Batch,
    BatchPosition,
    Counts,
    DecodedMedia,
    Effort,
    MediaRef,
    Reason,
    RunSpec,
)

RUN = RunSpec("run", "2026-01-31", "/nowhere", carry=("owner", "asset"))


def batch(*items: tuple[int | None, str | None]) -> Batch:
    """Items of a colour, a text, or both."""
    media = tuple(
        DecodedMedia(
            MediaRef(f"u{row}", "v1", 7, id=f"i{row}", carried=("me", None)),
            "sha",
            7,
            width=None if colour is None else 10,
            height=None if colour is None else 20,
            text=text,
        )
        for row, (colour, text) in enumerate(items)
    )
    colours = [colour for colour, _ in items if colour is not None]
    pixels = np.zeros((len(colours), 4, 4, 3), dtype=np.uint8)
    pixels[:, 0, 0] = np.array(colours, dtype=np.uint8)[:, None]
    return Batch(
        BatchPosition("s", 0, True), media, pixels, (), Effort(), Counts(listed=len(items))
    )


def rows(embedded) -> list[dict]:
    return embedded.embeddings.to_pylist()


def test_modalities_in_one_batch():
    embedded = embed_batch(batch((7, None), (None, "a b"), (9, "aaa")), FakeModel(), 3, RUN)
    found = rows(embedded)
    assert [row["modality"] for row in found] == ["image", "text", "pair"]
    assert [row["text_windows"] for row in found] == [None, 1, 1]
    assert [row["width"] for row in found] == [10, None, 10]
    assert [row["unused"] for row in found] == [None, None, None]
    assert embedded.counts.listed == 3


def test_ids_and_carried_columns_come_along():
    (row,) = rows(embed_batch(batch((7, None)), FakeModel(), 3, RUN))
    assert (row["id"], row["owner"], row["asset"]) == ("i0", "me", None)


@pytest.mark.parametrize("weight", [0.0, 0.25, 0.5, 1.0])
def test_a_pair_is_the_normalised_weighted_sum(weight):
    model = FakeModel()
    items = batch((7, None), (None, "aaab"), (7, "aaab"))
    image, text, both = (
        np.array(row["embedding"]) for row in rows(embed_batch(items, model, 3, RUN, weight))
    )
    expected = (1 - weight) * image + weight * text
    assert both == pytest.approx(expected / np.linalg.norm(expected), abs=1e-6)


def test_a_long_text_is_the_normalised_mean_of_its_windows():
    model = FakeModel()
    text = "a a a a b b b b a a"
    (row,) = rows(embed_batch(batch((None, text)), model, 3, RUN))
    assert row["text_windows"] == 3
    mean = model.encode_texts(["a a a a", "b b b b", "a a"]).mean(axis=0)
    assert row["embedding"] == pytest.approx(mean / np.linalg.norm(mean), abs=1e-6)


def test_texts_keep_their_vectors_whatever_is_around_them():
    texts = ["a", "b b b b b b b b b", "a b", "poison", "a a a a a"]
    together = embed_batch(batch(*((None, text) for text in texts)), FakeModel(), 3, RUN)
    assert [failure.ref.uri for failure in together.failures] == ["u3"]
    assert together.failures[0].reason is Reason.MODEL_ERROR
    alone = [
        rows(embed_batch(batch((None, text)), FakeModel(), 3, RUN))[0]["embedding"]
        for text in texts
        if text != "poison"
    ]
    found = [row["embedding"] for row in rows(together)]
    assert np.array(found) == pytest.approx(np.array(alone), abs=1e-6)


def test_a_half_that_the_model_cannot_take_leaves_the_other():
    model = FakeModel(poison=99, nan=66)
    items = batch((99, "aaa"), (7, "poison"), (66, "b"), (7, "a"), (99, "poison"))
    embedded = embed_batch(items, model, 3, RUN)
    assert [(row["uri"], row["modality"], row["unused"]) for row in rows(embedded)] == [
        ("u0", "text", "image: model_error"),
        ("u1", "image", "text: model_error"),
        ("u2", "text", "image: not_finite"),
        ("u3", "pair", None),
    ]
    (failure,) = embedded.failures
    assert (failure.ref.uri, failure.message) == ("u4", "a picture that the model cannot take")


def test_one_pair_that_fails_in_both_halves_is_to_blame_itself():
    (failure,) = embed_batch(batch((99, "poison")), FakeModel(poison=99), 3, RUN).failures
    assert (failure.ref.uri, failure.reason) == ("u0", Reason.MODEL_ERROR)
    with pytest.raises(RuntimeError, match="a picture that"):
        embed_batch(batch((99, "poison"), (99, None)), FakeModel(poison=99), 3, RUN)


@pytest.mark.parametrize("error", [RuntimeError("no such token"), ValueError("no such token")])
def test_a_text_that_the_tokenizer_cannot_take(error):
    class Choosy(FakeModel):
        def text_windows(self, text):
            if text == "odd":
                raise error
            return super().text_windows(text)

    items = batch((7, None), (None, "a"), (None, "odd"), (7, "odd"), (7, "b"))
    embedded = embed_batch(items, Choosy(), 3, RUN)
    assert [(row["uri"], row["text_windows"], row["unused"]) for row in rows(embedded)] == [
        ("u0", None, None), ("u1", 1, None), ("u3", None, "text: model_error"), ("u4", 1, None),
    ]  # fmt: skip
    (failure,) = embedded.failures
    assert (failure.ref.uri, failure.reason) == ("u2", Reason.MODEL_ERROR)
    assert failure.message == "no such token"


def test_halves_that_cancel_out_leave_the_picture():
    class Opposed(FakeModel):
        def encode_texts(self, texts):
            return -self.encode_images(np.full((len(texts), 4, 4, 3), 7, np.uint8))

        def encode_images(self, pixels):
            return np.full((len(pixels), 3), 3**-0.5, dtype=np.float32)

    (row,) = rows(embed_batch(batch((7, "a")), Opposed(), 3, RUN))
    assert row["embedding"] == pytest.approx([3**-0.5] * 3)
