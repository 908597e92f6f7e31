"""What the ledgers take for done, and what it costs them to know."""

from __future__ import annotations

import gc
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nights import watched
from tables import Item, embeddings, failures

from transforms.ledger import (
    TAR_END,
    HeldKeys,
    Ledger,
    LedgerSpec,
    item_key,
    key_of,
    read_held,
    read_items,
    split_keys,
    unscored_files,
)
from transforms.publishing import publish
from transforms.records import MediaRef
from transforms.stored import DamagedError, stored_files
from transforms.writing import table_file

ODD = [
    "",
    " ",
    "é",
    "e\u0301",
    "猫",
    "\U0001f408",
    "a#b%20?c=d",
    "[x]*",
    "\n\t",
    "\x01",
    "a" * 5000,
]


def spec(output: object, retry: str = "retryable", model: str = "m") -> LedgerSpec:
    return LedgerSpec(str(output), model, retry, "run")  # type: ignore[arg-type]


def states(ledger: Ledger, *items: Item) -> list[str | bool | None]:
    return ledger.take([item_key(*item) for item in items])


# Digests.

words = st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\0"), max_size=9)
items = st.tuples(words, words, st.none() | words)


@settings(max_examples=60, deadline=None)
@given(st.lists(items, max_size=20))
def test_a_files_digests_are_those_of_its_items(tmp_path_factory, rows):
    output = tmp_path_factory.mktemp("out")
    rows = [
        *rows,
        *((uri, version, id_) for uri in ODD for version, id_ in (("", None), ("v", uri))),
    ]
    embeddings(output, rows)
    (file,) = stored_files(str(output), "embeddings")
    held = read_held(file, spec(output))
    assert split_keys(held.keys) == [item_key(*item) for item in rows]
    assert split_keys(held.keys) == [key_of(MediaRef(u, v, id=i)) for u, v, i in rows]
    assert [row[:3] for row in read_items(file, spec(output))] == rows
    # No id and an empty one are the same; nothing else is the same as anything else.
    plain = [(uri, version, id_ or "") for uri, version, id_ in rows]
    assert len(set(split_keys(held.keys))) == len(set(plain))


def test_digests_that_are_alike_in_their_first_half(tmp_path):
    """Of which none can be found: they are told to the ledger as a file's word would be."""
    halves = [bytes([number]) * 8 for number in range(7)]
    keys = [first + second for first in halves[:3] for second in halves[1:6]]
    odd, even = keys[1::2], keys[0::2]
    ledger = Ledger(
        spec(tmp_path),
        [
            HeldKeys(b"".join(odd), ["empty"] * len(odd), b"", None, False),
            HeldKeys(b"".join(even[::-1]), None, b"", None, False),
        ],
    )
    others = [halves[3] + halves[1], halves[0] + halves[6], halves[0] + halves[0]]
    assert len(ledger) == 15
    assert ledger.take([*keys, *others]) == ["empty" if key in odd else True for key in keys] + [
        False, False, False,
    ]  # fmt: skip
    assert ledger.take([*keys, *others]) == [None] * 18
    assert [ledger.state(key) for key in (keys[0], keys[1], others[0])] == [True, "empty", False]


# What is done.


def test_an_item_is_taken_once(tmp_path):
    a, b, c, d = [(f"gs://b/{name}", "1", None) for name in "abcd"]
    embeddings(tmp_path, [a, b])
    failures(tmp_path, [(c, {"reason": "not_an_image"}), (d, {"reason": "of_a_later_version"})])
    ledger = Ledger(spec(tmp_path))
    new, other = ("gs://b/a", "2", None), ("gs://b/a", "1", "id")
    assert states(ledger, a, new, a, c, new, other) == [
        True,
        False,
        None,
        "not_an_image",
        None,
        False,
    ]
    assert states(ledger, a, new, b, c, d) == [None, None, True, None, "read_error"]
    # Asking takes nothing.
    assert [ledger.state(item_key(*item)) for item in (a, c, new)] == [True, "not_an_image", False]
    assert states(Ledger(spec(tmp_path / "nowhere")), a, a) == [False, None]


PERMANENT = {"reason": "not_an_image", "stage": "decode"}
PASSING = {"reason": "unavailable", "stage": "read", "retryable": True}
OF_THE_MODEL = {"reason": "not_finite", "stage": "embed"}


@pytest.mark.parametrize(
    ("retry", "model", "stand"),
    [
        ("none", "m", "permanent passing of_the_model"),
        ("retryable", "m", "permanent of_the_model"),
        ("all", "m", ""),
        # What one model could not take, another may.
        ("none", "other", "permanent passing"),
        ("retryable", "other", "permanent"),
        ("all", "other", ""),
    ],
)
def test_which_failures_stand(tmp_path, retry, model, stand):
    kinds = {"permanent": PERMANENT, "passing": PASSING, "of_the_model": OF_THE_MODEL}
    rows = [((name, "1", None), own) for name, own in kinds.items()]
    failures(tmp_path, [*rows, (("mended", "1", None), PERMANENT)])
    embeddings(tmp_path, [("mended", "1", None)], model=model)
    found = Ledger(spec(tmp_path, retry, model))
    expected = [own["reason"] if name in stand else False for name, own in kinds.items()]
    assert states(found, *(item for item, _ in rows)) == expected
    # However it failed before, or failed again on another day.
    assert states(found, ("mended", "1", None)) == [True]
    (file,) = stored_files(str(tmp_path), "failures")
    listed = {uri: reason for uri, _, _, reason in read_items(file, spec(tmp_path, retry, model))}
    assert {name: listed.get(name, False) for name in kinds} == dict(
        zip(kinds, expected, strict=True)
    )


def test_failures_that_do_not_tell_their_model(tmp_path):
    """As they were written before they did: another try may be one too many, and never one less."""
    kinds = {"permanent": PERMANENT, "passing": PASSING, "of_the_model": OF_THE_MODEL}
    failures(tmp_path, [((name, "1", None), own) for name, own in kinds.items()], without=["model"])
    found = Ledger(spec(tmp_path))
    assert states(found, *((name, "1", None) for name in kinds)) == ["not_an_image", False, False]


def test_tars_are_done_when_all_parts_are_there(tmp_path):
    def part(
        tar: str, number: int, *, run: str = "aaaaaa", end: bool = False, count: int = 2,
        failed: tuple[str, str | None] | None = None,
    ) -> None:  # fmt: skip
        shard = f"{tar * 16}-{run}-{number:04d}"
        members = [(f"{tar}.tar#{run}{number}{place}", "1", "x") for place in range(count)]
        embeddings(tmp_path, members, shard=shard, footer={TAR_END: b""} if end else {})
        rows = [((failed[0], "1", failed[1]), PASSING)] if failed else []
        failures(tmp_path, rows, shard=shard)

    part("1", 0)
    part("1", 1, end=True)
    part("2", 0)  # broken off
    part("3", 1, end=True)  # somebody has deleted its beginning
    part("4", 0)  # broken off, and gone on by another run
    part("4", 0, run="bbbbbb", end=True, count=0)
    part("5", 0, end=True, count=0)
    part("5", 1)
    part("6", 0, end=True, failed=("6.tar#x", "x"))
    part("7", 0, end=True)
    part("7", 0, run="bbbbbb", failed=("7.tar#aaaaaa00", "x"))  # which has a vector
    part("8", 0, end=True, failed=("8.tar", None))  # the store broke off
    part("9", 0, end=True, failed=("9.tar", None))
    part("9", 0, run="bbbbbb", end=True)  # and another time it did not
    part("a", 0, end=True)
    (lost,) = tmp_path.glob(f"failures/*/shard-{'a' * 16}-*")
    lost.unlink()  # killed before its failures were written
    tars = {name[0]: tar for name, tar in Ledger(spec(tmp_path)).tars.items()}
    assert {name: tar.done for name, tar in tars.items()} == {
        "1": True, "2": False, "3": False, "4": True, "5": False, "6": False, "7": True,
        "8": False, "9": True, "a": False,
    }  # fmt: skip
    assert [tars[name].embedded for name in "124"] == [4, 2, 2]
    tried_no_more = Ledger(spec(tmp_path, "none")).tars
    assert [tried_no_more[name * 16].done for name in "268"] == [False, True, True]


def test_files_that_lack_predictions(tmp_path):
    for dt in ("2026-01-01", "2026-01-02"):
        for model in ("m", "other"):
            embeddings(tmp_path, [("a", dt, None)], model=model, dt=dt)
    for label_set, model, dt in [("w-1", "m", "01"), ("w-2", "other", "02"), ("w-2", "m", "02")]:
        parts = (f"label_set={label_set}", f"model={model}", f"dt=2026-01-{dt}")
        publish(table_file(str(tmp_path), "0", "predictions", *parts), b"never opened")
    found = unscored_files(str(tmp_path), "m", ["w-1", "w-2"])
    assert {unscored.file.dt: unscored.label_sets for unscored in found} == {
        "2026-01-01": ("w-2",), "2026-01-02": ("w-1",),
    }  # fmt: skip
    assert {unscored.file.model for unscored in found} == {"m"}
    assert unscored_files(str(tmp_path), "m", []) == []


# What it costs.


def test_memory_is_a_few_bytes_an_item(tmp_path):
    count, parts = 200_000, 8
    for part in range(parts):
        numbers = range(part, count, parts)
        embeddings(tmp_path, [(f"gs://archive/{n:09d}.jpg", str(n), None) for n in numbers],
                   shard=str(part))  # fmt: skip
    Ledger(spec(tmp_path / "nowhere"))  # What is imported and made once is not counted.
    gc.collect()
    tracemalloc.start()
    try:
        ledger = Ledger(spec(tmp_path))
        held, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(ledger) == count
    assert held < 20 * count
    # A digest while it is a Python object is 49 bytes, and a few files are read at a time.
    assert peak < 200 * count
    assert states(ledger, ("gs://archive/000000007.jpg", "7", None)) == [True]


@pytest.mark.parametrize("scheme", ["s3", "gs"])
def test_of_files_on_a_store_only_the_keys_are_read(scheme):
    vectors = np.random.default_rng(0).random((2000, 512), np.float32)
    with watched(scheme, "tables") as server:
        output = f"{scheme}://tables/out"
        rows = [(f"gs://archive/{number}", str(number), None) for number in range(len(vectors))]
        url = embeddings(output, rows, vectors=vectors)
        failures(output, [(("gs://archive/bad", "1", None), PERMANENT)])
        server.reset()
        ledger = Ledger(spec(output))
        read = server.counts()["bytes"]
        server.reset()
        (file,) = stored_files(output, "embeddings")
        assert file.url == url
    assert len(ledger) == 2001
    assert read < vectors.nbytes / 20


@pytest.mark.parametrize("lacking", ["uri", "version", "id"])
def test_a_file_without_the_columns_is_named(tmp_path: Path, lacking):
    url = failures(tmp_path, [(("a", "1", None), PERMANENT)], without=[lacking])
    with pytest.raises(DamagedError, match=f"cannot read {url}: it has no column {lacking};"):
        Ledger(spec(tmp_path))
