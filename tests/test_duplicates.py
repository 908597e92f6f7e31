"""The same bytes under many names: one vector, and rows for every name."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from conftest import Job, encoded, picture, write_pictures
from contents import RUN, Told, batch, image, once, pictures, reread, same_rows, sha, write
from fakes import FakeModel
from packing import pack

from transforms.decoding import ImageDecoder
from transforms.knownvectors import KnownVectors, shared_vectors
from transforms.ledger import LedgerSpec
from transforms.reading import ReadMedia, _ReadBatches
from transforms.records import (
    Batch,
    BatchPosition,
    ContentKey,
    MediaRef,
    Preprocess,
    ReadLimits,
    Reason,
    Shard,
)


@pytest.fixture
def output(tmp_path: Path) -> str:
    return str(tmp_path / "out")


@pytest.fixture
def known(output: str) -> KnownVectors:
    return KnownVectors(output, "m-1")


def test_in_a_batch_across_batches_shards_and_runs(output, known):
    model = FakeModel()
    batches = [
        pictures([1, 2, 1, 1, 3, 2], "a"),
        pictures([3, 4, 1, 4], "a", 10, seq=1),
        pictures([4, 5, 5], "b", 20),
    ]
    batches[0] = replace(batches[0], position=BatchPosition("a", 0, last=False))
    embedded = [once(reread(decoded, known), known, model) for decoded in batches]
    # A batch may also be decoded before its bytes are known.
    late = once(pictures([2, 6, 6], "c", 30), known, model)
    assert model.calls == [3, 1, 1, 1]
    assert [part.counts.duplicates for part in [*embedded, late]] == [3, 3, 2, 2]
    for part, decoded in zip(embedded, batches, strict=True):
        same_rows(part, decoded)
    same_rows(late, pictures([2, 6, 6], "c", 30))

    # By way of the files: in this run, which has written some, and in another one.
    write(embedded[:2], output, known)
    write([late], output, known)
    again = pictures([6, 5, 4, 3, 2, 1], "d", 40)
    for knows in (known, KnownVectors(output, "m-1")):
        model.calls.clear()
        found = once(reread(again, knows), knows, model)
        # What has no file yet only its own process knows.
        assert model.calls == ([] if knows is known else [1])
        same_rows(found, again)


def test_rows_are_of_their_own_items(known):
    model = FakeModel()
    first = once(pictures([1, 1], "a"), known, model)
    later = once(pictures([1], "b", 7), known, model, replace(RUN, run_id="other"))
    rows = [*first.embeddings.to_pylist(), *later.embeddings.to_pylist()]
    assert [(row["uri"], row["version"], row["id"], row["owner"]) for row in rows] == [
        (uri, f"version of {uri}", f"id of {uri}", f"owner of {uri}")
        for uri in ("u000", "u001", "u007")
    ]
    assert [row["run_id"] for row in rows] == ["run", "run", "other"]
    assert rows[0]["embedded_at"] <= rows[1]["embedded_at"] <= rows[2]["embedded_at"]


def test_those_without_a_value_to_carry_carry_nothing(known):
    decoded = pictures([1, 1])
    media = tuple(replace(item, ref=item.ref._replace(carried=())) for item in decoded.media)
    rows = once(replace(decoded, media=media), known, FakeModel()).embeddings
    assert rows.column("owner").to_pylist() == [None, None]


def test_whose_first_fails_fails_with_it(known):
    model = FakeModel(poison=99, nan=77)
    decoded = pictures([1, 99, 77, 99, 1, 77, 99, 2])
    embedded = once(decoded, known, model)
    assert embedded.embeddings.column("uri").to_pylist() == ["u000", "u004", "u007"]
    said = [(failure.ref.uri, failure.reason, failure.message) for failure in embedded.failures]
    poisoned = (Reason.MODEL_ERROR, "a picture that the model cannot take")
    not_finite = (Reason.NOT_FINITE, "the model gave a vector with NaN or infinity")
    assert sorted(said) == [
        ("u001", *poisoned), ("u002", *not_finite), ("u003", *poisoned),
        ("u005", *not_finite), ("u006", *poisoned),
    ]  # fmt: skip
    assert [failure.ref for failure in embedded.failures if failure.ref.uri == "u006"] == [
        decoded.media[6].ref
    ]
    assert embedded.counts.duplicates == 1
    # Another batch tries it again.
    assert not known.has(image(99))
    model.poison = None
    same_rows(once(pictures([99, 99]), known, model), pictures([99, 99]))


def test_all_of_one_content_that_fails_is_not_a_broken_model(known):
    embedded = once(pictures([99] * 4), known, FakeModel(poison=99))
    assert embedded.embeddings.num_rows == 0
    assert [failure.reason for failure in embedded.failures] == [Reason.MODEL_ERROR] * 4


def test_texts_are_known_by_their_bytes_and_are_no_pictures(known):
    model = FakeModel()
    told: list[Told] = [
        ("t1", None, "aaa b"), ("p1", 1, None), ("t2", None, "aaa b"), ("t3", None, "b b b b a"),
        ("p2", 1, None),
    ]  # fmt: skip
    decoded = batch(told)
    embedded = once(decoded, known, model)
    same_rows(embedded, decoded)
    assert embedded.counts.duplicates == 2
    assert embedded.embeddings.column("text_windows").to_pylist() == [1, None, 1, 2, None]
    assert known.has(ContentKey("text", sha("aaa b")))
    assert not known.has(ContentKey("image", sha("aaa b")))


def test_of_pairs_and_of_halves_nothing_is_known(known, output):
    """Their vectors are of more, or of less, than the bytes that the row tells."""
    model = FakeModel()
    told: list[Told] = [("p1", 1, "a a"), ("p2", 1, "a a"), ("lost", 2, "poison"), ("p3", 1, "b")]
    decoded = batch(told)
    embedded = once(decoded, known, model)
    assert (sum(model.calls), embedded.counts.duplicates) == (4, 0)
    rows = embedded.embeddings.to_pylist()
    assert [row["modality"] for row in rows] == ["pair", "pair", "image", "pair"]
    assert rows[2]["unused"] == "text: model_error"
    assert rows[0]["embedding"] == rows[1]["embedding"] != rows[3]["embedding"]
    # Of a text whose picture could not be read.
    halves = batch([("half", None, "b b"), ("half 2", None, "b b")])
    lost = [replace(item, unused="image: not_found") for item in halves.media]
    half = once(replace(halves, media=tuple(lost)), known, model)
    assert half.embeddings.column("unused").to_pylist() == ["image: not_found"] * 2
    write([embedded], output, known)
    write([half], output, known)
    for knows in (known, KnownVectors(output, "m-1")):
        contents = [image(1), image(2), ContentKey("text", sha("b b"))]
        assert [knows.has(content) for content in contents] == [False] * 3
    # And none of them takes a vector of those that stand alone.
    once(batch([("alone", 1, None)]), known, model)
    model.calls.clear()
    once(decoded, known, model)
    assert sum(model.calls) == 4


def test_a_bundle_that_is_done_again_is_the_same(output, known):
    """Whether it broke off before its shard was written or after."""
    model = FakeModel()
    decoded = pictures([1, 1, 2, 3, 2])
    counts = once(decoded, known, model).counts
    for _ in range(2):
        model.calls.clear()
        again = once(reread(decoded, known), known, model)
        assert model.calls == []
        same_rows(again, decoded)
        # Its own vectors are no duplicates because they have been made before.
        assert again.counts == counts
        write([again], output, known)
    for colours in ([3, 1, 2], [2, 3]):
        same_rows(once(pictures(colours, "x"), known, model), pictures(colours, "x"))


class _Decoder(ImageDecoder):
    """Counts what it decodes."""

    def __call__(self, data, room):
        decoded.append(data)
        return super().__call__(data, room)


decoded: list[bytes] = []


def test_reading_decodes_what_has_no_vector(tmp_path, output):
    """By what the bytes are, not by the name that they have."""
    decoded.clear()
    picture_bytes, text = encoded(picture()), b"plain words"
    for name in ("a.jpg", "b.txt", "c.png"):
        (tmp_path / name).write_bytes(picture_bytes)
    for name in ("d.txt", "e.md", "f.jpg"):
        (tmp_path / name).write_bytes(text)

    def read(names: str, run: str, **more) -> tuple[Batch, KnownVectors]:
        spec = LedgerSpec(output, "m-1", "none", run)
        decoder = _Decoder(Preprocess((4, 4), (0, 0, 0), (1, 1, 1)), 10**6)
        reader = _ReadBatches(
            ReadMedia(decoder, ReadLimits(8, 10, 10**6), 99, 99, run, ledger=spec)
        )
        reader.setup()
        reader.start_bundle()
        refs = [MediaRef(str(next(tmp_path.glob(f"{name}.*"))), "v", **more) for name in names]
        assert list(reader.process(Shard(names, tuple(refs)), 0, None)) == []
        (value,) = reader.finish_bundle()
        reader.teardown()
        return value.value, shared_vectors(spec)

    first, known = read("ad", "1")
    write([once(first, known, FakeModel())], output, known)
    assert len(decoded) == 1
    for run in ("1", "2"):
        model = FakeModel()
        later, known = read("bcef", run)
        assert [item.embedded and item.embedded.modality for item in later.media] == [
            "image", "image", "text",
        ]  # fmt: skip
        # Under a picture's name it is a broken picture.
        assert [failure.reason for failure in later.failures] == [Reason.NOT_AN_IMAGE]
        embedded = once(later, known, model)
        assert (model.calls, embedded.counts.duplicates) == ([], 3)
        rows = embedded.embeddings.to_pylist()
        assert [(row["modality"], row["width"], row["text_windows"]) for row in rows] == [
            ("image", 64, None), ("image", 64, None), ("text", None, 1),
        ]  # fmt: skip
    # A pair has to be decoded.
    pair, _ = read("a", "3", text="words")
    assert [(item.embedded, item.width) for item in pair.media] == [(None, 64)]
    assert decoded.count(picture_bytes) == 2


def test_thirty_names_of_three_pictures(job: Job, tmp_path):
    archive = tmp_path / "archive"
    archive.mkdir()
    for number in range(30):
        (archive / f"{number:02d}.jpg").write_bytes(encoded(picture(seed=number % 3)))
    done = job(input=archive, shard_size=8, batch_size=3, run_date="2026-01-01")
    assert done.status == 0, done.err
    counts = {"listed": 30, "reused": 0, "embedded": 3, "duplicates": 27, "failed": 0}
    assert done.record["counts"] == counts
    assert "duplicates  27 of bytes that have a vector already" in done.out
    rows, tags = done.table("embeddings"), done.table("predictions")
    assert [row["uri"] for row in rows] == [str(path) for path in sorted(archive.iterdir())]
    of_tags = [(row["label"], row["rank"], row["score"]) for row in tags]
    for number, row in enumerate(rows):
        assert row["embedding"] == rows[number % 3]["embedding"]
        same = of_tags[2 * (number % 3) :][:2]
        assert of_tags[2 * number :][:2] == same
    assert len({tuple(row["embedding"]) for row in rows}) == 3

    # The next night's names are read for their bytes; to decode them would be an error.
    (archive / "00.jpg").rename(archive / "renamed.jpg")
    (archive / "new.jpg").write_bytes(encoded(picture(seed=7)))
    done = job(input=archive, run_date="2026-01-02", max_pixels=1)
    counts = {"listed": 31, "reused": 29, "embedded": 0, "duplicates": 1, "failed": 1}
    assert done.record["counts"] == counts
    (new,) = [row for row in done.table("embeddings") if row["uri"].endswith("renamed.jpg")]
    assert new["embedding"] == rows[0]["embedding"]
    assert (new["width"], new["bytes"]) == (rows[0]["width"], rows[0]["bytes"])
    (failure,) = done.table("failures")
    assert failure["uri"].endswith("new.jpg")


def test_across_folders_manifests_and_tars(job: Job, tmp_path):
    archive = write_pictures(tmp_path / "archive", 3)
    same = (archive / "00000.jpg").read_bytes()
    (archive / "00002.jpg").write_bytes(same)
    (tmp_path / "set.tar").write_bytes(
        pack([("x.jpg", same), ("y.jpg", same), ("z.jpg", same), ("z.txt", b"a")])
    )
    rows = ["uri,text,owner", "archive/00001.jpg,,ann", "archive/00000.jpg,,bob"]
    (tmp_path / "m.csv").write_text("\n".join([*rows, "archive/00000.jpg,words,cy"]))
    flags = [f"--input={tmp_path / name}" for name in ("archive", "set.tar", "m.csv")]
    done = job(*flags, carry="owner", run_date="2026-01-01")
    assert done.status == 0, done.err
    # The rows of the manifest without a text are objects that the folder has too.
    counts = {"listed": 7, "reused": 0, "embedded": 4, "duplicates": 3, "failed": 0}
    assert done.record["counts"] == counts
    rows = done.table("embeddings")
    alone = [row for row in rows if row["modality"] == "image" and row["bytes"] == len(same)]
    assert len(alone) == 4
    assert len({tuple(row["embedding"]) for row in alone}) == 1
