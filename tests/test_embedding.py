from __future__ import annotations

import numpy as np
import pytest
import torch
from fakes import FakeModel

from transforms.embedding import OpenClipHandler
from transforms.encoding import embed_batch
from transforms.records import (
    Batch,
    BatchPosition,
    DecodedMedia,
    Effort,
    Failure,
    MediaRef,
    ModelSpec,
    Reason,
    RunSpec,
    Stage,
)
from transforms.schemas import embeddings_schema

RUN = RunSpec("run", "2026-01-31", "/nowhere")


def batch(colours: list[int], failures: tuple[Failure, ...] = ()) -> Batch:
    pixels = np.zeros((len(colours), 4, 4, 3), dtype=np.uint8)
    pixels[:, 0, 0] = np.array(colours, dtype=np.uint8)[:, None]
    media = tuple(
        DecodedMedia(MediaRef(f"u{row}", "v1", 7), "sha", 7, 10, 20) for row in range(len(colours))
    )
    return Batch(BatchPosition("s", 0, True), media, pixels, failures, Effort({"fetch": 1.0}))


def uris(embedded) -> list[str]:
    return embedded.embeddings.column("uri").to_pylist()


def test_rows_of_embeddings():
    embedded = embed_batch(batch([10, 20]), FakeModel(), 3, RUN)
    assert embedded.embeddings.schema == embeddings_schema(3)
    row = embedded.embeddings.to_pylist()[1]
    assert {name: row[name] for name in list(row)[:10]} == {
        "uri": "u1", "version": "v1", "id": None, "modality": "image", "content_sha256": "sha",
        "width": 10, "height": 20, "text_windows": None, "unused": None, "bytes": 7,
    }  # fmt: skip
    assert np.linalg.norm(row["embedding"]) == pytest.approx(1)
    assert row["run_id"] == "run"
    assert embedded.failures == ()
    assert set(embedded.effort.seconds) == {"fetch", "device"}


def test_one_bad_picture_costs_only_itself():
    model = FakeModel(poison=99)
    embedded = embed_batch(batch([1, 2, 3, 4, 5, 99, 7]), model, 3, RUN)
    assert uris(embedded) == ["u0", "u1", "u2", "u3", "u4", "u6"]
    (failure,) = embedded.failures
    assert (failure.ref.uri, failure.stage, failure.reason) == (
        "u5", Stage.EMBED, Reason.MODEL_ERROR,
    )  # fmt: skip
    assert failure.message == "a picture that the model cannot take"
    assert max(model.calls[1:]) < 7


def test_rows_keep_their_vectors_when_a_batch_is_cut():
    colours = [10, 60, 99, 120, 200]
    whole = embed_batch(batch([10, 60, 120, 200]), FakeModel(), 3, RUN).embeddings
    cut = embed_batch(batch(colours), FakeModel(poison=99), 3, RUN).embeddings
    assert cut.column("embedding").to_pylist() == whole.column("embedding").to_pylist()


def test_out_of_memory_is_tried_in_halves():
    model = FakeModel(room=3)
    embedded = embed_batch(batch(list(range(8))), model, 3, RUN)
    assert uris(embedded) == [f"u{row}" for row in range(8)]
    assert embedded.failures == ()
    assert model.calls == [8, 4, 2, 2, 4, 2, 2]


def test_nan_never_reaches_the_table():
    embedded = embed_batch(batch([1, 66, 3]), FakeModel(nan=66), 3, RUN)
    assert uris(embedded) == ["u0", "u2"]
    assert [failure.reason for failure in embedded.failures] == [Reason.NOT_FINITE]


def test_a_broken_model_is_not_blamed_on_the_items():
    with pytest.raises(RuntimeError, match="a picture that the model cannot take"):
        embed_batch(batch([99, 99, 99]), FakeModel(poison=99), 3, RUN)
    with pytest.raises(torch.OutOfMemoryError):
        embed_batch(batch([1, 2, 3]), FakeModel(room=0), 3, RUN)


def test_a_single_item_that_fails_is_a_failure():
    embedded = embed_batch(batch([1]), FakeModel(room=0), 3, RUN)
    assert [failure.reason for failure in embedded.failures] == [Reason.OUT_OF_MEMORY]


def test_nothing_to_embed_asks_no_model():
    model = FakeModel()
    unread = Failure(MediaRef("u9", "v"), Stage.READ, Reason.NOT_FOUND, "gone")
    embedded = embed_batch(batch([], (unread,)), model, 3, RUN)
    assert model.calls == []
    assert embedded.embeddings.num_rows == 0
    assert embedded.embeddings.schema == embeddings_schema(3)
    assert embedded.failures == (unread,)


def test_the_handler_keeps_runinference_cheap():
    handler = OpenClipHandler(ModelSpec("demo"), 3, RUN)
    assert handler.get_resource_hints() == {}
    assert handler.get_num_bytes(batch([1, 2])) == 2 * 4 * 4 * 3
    results = handler.run_inference(batch([1, 2]), FakeModel())
    assert isinstance(results, list)
    assert len(results) == 1
    assert handler.with_no_batching().should_skip_batching()
