"""What has a vector, and where: in files of this worker and of others, or in none yet."""

from __future__ import annotations

import itertools
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from contents import image, once, pictures, reread, same_rows, write
from fakes import FakeModel

from transforms.knownvectors import FILES_IN_MEMORY, SHARDS_IN_WORK, KnownVectors, shared_vectors
from transforms.ledger import LedgerSpec
from transforms.stored import DamagedError


@pytest.fixture
def output(tmp_path: Path) -> str:
    return str(tmp_path / "out")


@pytest.fixture
def known(output: str) -> KnownVectors:
    return KnownVectors(output, "m-1")


def test_models_do_not_share(output, known):
    write([once(pictures([1]), known, FakeModel())], output, known)
    assert KnownVectors(output, "m-1").has(image(1))
    assert not KnownVectors(output, "m-10").has(image(1))
    assert shared_vectors(LedgerSpec(output, "m-1", "none", "r")).has(image(1))
    assert not shared_vectors(LedgerSpec(output, "m", "none", "r")).has(image(1))


def test_a_file_that_is_written_anew_with_its_rows_in_other_places(output):
    """By this worker, which then knows; or by another one, of which this one can only tell that."""
    first, second = [1, 2, 3], [3, 9, 1, 2]
    for by_another in (False, True):
        known = KnownVectors(output, "m-1")
        write([once(pictures(first), known, FakeModel())], output, known)
        if not by_another:
            same_rows(once(pictures(first, "x", 50), known, FakeModel()), pictures(first, "x", 50))
        other = KnownVectors("memory://nothing", "m-1") if by_another else known
        write([once(pictures(second), other, FakeModel())], output, other)
        model = FakeModel()
        decoded = pictures([2, 3, 1, 3], "y", 60)
        same_rows(once(decoded, known, model), decoded)
        assert model.calls == ([3] if by_another else [])


def test_what_another_worker_wrote_is_found_when_reading_promised_it(output, known):
    assert not known.has(image(1))
    write([once(pictures([1, 2]), known, FakeModel())], output, None)
    reader = KnownVectors(output, "m-1")
    embedder = KnownVectors(output, "m-1")
    assert embedder.has(image(1))
    write([once(pictures([7, 8], "late"), known, FakeModel())], output, None)
    reader = KnownVectors(output, "m-1")
    decoded = pictures([8, 1, 7], "b", 9)
    model = FakeModel()
    same_rows(once(reread(decoded, reader), embedder, model), decoded)
    assert model.calls == []
    # What is nowhere must not be lost without a word.
    promised = reread(decoded, reader)
    with pytest.raises(RuntimeError, match="shard b: 3 stored vectors are gone; try again"):
        once(promised, KnownVectors("memory://nothing", "m-1"), model)


def test_what_is_kept_until_it_is_written_has_a_bound(output, known):
    # Shards that another worker writes, or nobody.
    for number in range(3 * SHARDS_IN_WORK):
        once(pictures([number % 250, (number + 1) % 250], f"s{number}"), known, FakeModel())
        assert len(known._unwritten) <= 2 * SHARDS_IN_WORK
    assert known.has(image(3 * SHARDS_IN_WORK))
    assert len(known._shards) == SHARDS_IN_WORK


def test_nothing_is_kept_of_what_is_written_in_whatever_order(output):
    """Also where a shard that has copies of another's is written before that one."""
    colours = {"a": [1, 2, 3], "b": [2, 4], "c": [4, 1, 3, 3]}
    for order in itertools.permutations(colours):
        place = f"{output}-{''.join(order)}"
        known = KnownVectors(place, "m-1")
        done = {
            shard: once(pictures(some, shard), known, FakeModel())
            for shard, some in colours.items()
        }
        for shard in order:
            write([done[shard]], place, known)
            model, everything = FakeModel(), pictures([1, 2, 3, 4], shard, 50)
            same_rows(once(everything, known, model), everything)
            assert model.calls == []
        # Each of the looks above was of the shard's, with nothing new in it.
        assert len(known._unwritten) == 0, order


def test_files_are_read_one_after_the_other_and_not_kept(output, known):
    count = FILES_IN_MEMORY + 3
    for number in range(count):
        write(
            [once(pictures([number, 100 + number], f"f{number}"), known, FakeModel())],
            output,
            known,
        )
    model, mixed = FakeModel(), [*range(count), *range(100, 100 + count)]
    np.random.default_rng(0).shuffle(mixed)
    knows = KnownVectors(output, "m-1")
    for start in (0, 300):
        # Rows of files, old ones and new ones, beside those that are in no file yet.
        decoded = pictures([*mixed, 200, 200, 201 + start // 300], "z", start)
        same_rows(once(decoded, knows, model), decoded)
    assert model.calls == [2, 1]
    assert len(knows._read) == FILES_IN_MEMORY


def test_threads(output, known):
    """Each shard has some of the same pictures as the others, at the same time."""
    together, shards, threads = threading.Barrier(8), 48, 8
    model = FakeModel()

    def do(first: int) -> None:
        together.wait()
        for number in range(first, shards, threads):
            colours = [1, 2, number + 3, number + 3, (number + 1) % shards + 3]
            decoded = pictures(colours, f"s{number:02d}", 10 * number)
            embedded = once(reread(decoded, known), known, model)
            same_rows(embedded, decoded)
            write([embedded], output, known)

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(do, range(threads)))
    assert (known._unwritten, known._shards) == ({}, {})
    everything = pictures([*range(1, shards + 3)], "z", 900)
    model.calls.clear()
    for knows in (known, KnownVectors(output, "m-1")):
        same_rows(once(reread(everything, knows), knows, model), everything)
    assert model.calls == []


def test_an_index_that_could_not_be_read_is_read_again(output, known):
    url = write([once(pictures([1]), known, FakeModel())], output, known)
    write([once(pictures([2], "t"), known, FakeModel())], output, known)
    content = Path(url).read_bytes()
    Path(url).write_bytes(content[:100])
    knows = KnownVectors(output, "m-1")
    for _ in range(2):
        with pytest.raises(DamagedError):
            knows.has(image(2))
    Path(url).write_bytes(content)
    assert knows.has(image(1))
    assert knows.has(image(2))
