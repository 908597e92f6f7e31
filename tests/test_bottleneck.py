from __future__ import annotations

import json
import threading
from typing import Any

import pytest
from checkpoints import VIT, make_checkpoint
from conftest import Job, encoded, picture, write_pictures
from faulty import faulty_server
from hypothesis import given
from hypothesis import strategies as st

from transforms.bottleneck import (
    MOST_CORES,
    Bound,
    Run,
    Spent,
    cores_to_keep_up,
    find_bottleneck,
    run_of,
)
from transforms.utilisation import Meter, cuda_share


def run(**spent: Any) -> Run:
    """A run of a minute, with nothing in it that is not told."""
    stages = {name: Spent() for name in ("fetch", "decode", "device")}
    return Run(**{"wall": 60.0, "startup": 2.0, "cores": 2, **stages, **spent})


DECODING = run(decode=Spent(84, 900), fetch=Spent(20, 0), device=Spent(14, 44))
FETCHING = run(fetch=Spent(1500, 60), decode=Spent(6, 30), device=Spent(14, 44))
EMBEDDING = run(fetch=Spent(20, 0), decode=Spent(40, 60), device=Spent(54, 4))

CASES = {
    "decoding on a CPU": (
        DECODING,
        Bound.DECODE,
        "decode-bound: the model waited 76 % of the time for decoding; "
        "4 more cores or --decode=fast",
    ),
    "decoding for a GPU": (
        DECODING._replace(on="cuda"),
        Bound.DECODE,
        "decode-bound: the model waited 76 % of the time for decoding; "
        "4 more cores, --decode=gpu, or --decode=fast",
    ),
    "decoding that is fast already": (
        DECODING._replace(on="cuda", decoding="fast"),
        Bound.DECODE,
        "decode-bound: the model waited 76 % of the time for decoding; "
        "4 more cores or --decode=gpu",
    ),
    "decoding by threads that leave cores alone": (
        DECODING._replace(on="cuda", cores=16),
        Bound.DECODE,
        "decode-bound: the model waited 76 % of the time for decoding, which had 9 % of its cores; "
        "more workers, --decode=gpu, or --decode=fast",
    ),
    "all cores decode, though most threads fetch": (
        DECODING._replace(fetch=Spent(1400, 0)),
        Bound.DECODE,
        "decode-bound: the model waited 76 % of the time for decoding; "
        "4 more cores or --decode=fast",
    ),
    "a store that answers late": (
        FETCHING,
        Bound.FETCH,
        "fetch-bound: the model waited 76 % of the time for objects; "
        "--read_concurrency=64 or a nearer store",
    ),
    "calls that wait for their turn": (
        FETCHING._replace(fetch=Spent(50, 1500), concurrency=1),
        Bound.FETCH,
        "fetch-bound: the model waited 76 % of the time for objects; "
        "--read_concurrency=2 or a nearer store",
    ),
    "one long tar": (
        FETCHING._replace(fetch=Spent(50, 0)),
        Bound.FETCH,
        "fetch-bound: the model waited 76 % of the time for objects; "
        "a nearer store or more workers",
    ),
    "a model on a CPU": (
        EMBEDDING,
        Bound.DEVICE,
        "device-bound: the model was busy 93 % of the time; "
        "--precision=bf16, a GPU, or more workers",
    ),
    "a model on a GPU": (
        EMBEDDING._replace(on="cuda", precision="bf16"),
        Bound.DEVICE,
        "device-bound: the model was busy 93 % of the time; a faster GPU or more workers",
    ),
    "many labels": (
        run(device=Spent(10, 4), score=Spent(40, 0)),
        Bound.SCORE,
        "score-bound: scoring took 74 % of the time; "
        "fewer labels or label sets, or more workers",
    ),
    "a slow store for the tables": (
        run(device=Spent(10, 4), write=Spent(6, 40)),
        Bound.WRITE,
        "write-bound: writing took 46.0 s, and all beside it 14.0 s; "
        "a larger --shard_size, a nearer store, or more workers",
    ),
    "a small run": (
        DECODING._replace(startup=45.0),
        Bound.STARTUP,
        "startup-bound: 75 % of 60.0 s went by before anything was read; "
        "more items in a run make it count for less",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_each_verdict(name):
    numbers, kind, sentence = CASES[name]
    found = find_bottleneck(numbers)
    assert found is not None
    assert (found.kind, found.sentence) == (kind, sentence)


def test_every_verdict_has_a_case():
    assert {kind for _, kind, _ in CASES.values()} == set(Bound)


def test_nothing_was_read():
    assert find_bottleneck(run()) is None


seconds = st.integers(0, 10**8).map(lambda milliseconds: milliseconds / 1000)
spent = st.builds(Spent, seconds, seconds)
runs = st.builds(
    Run,
    fetch=spent,
    decode=spent,
    device=spent,
    score=spent,
    write=spent,
    wall=seconds,
    startup=seconds,
    cores=st.integers(1, 256),
    concurrency=st.integers(1, 512),
    on=st.sampled_from(["cpu", "cuda"]),
    precision=st.sampled_from(["fp32", "bf16"]),
    decoding=st.sampled_from(["exact", "fast", "gpu"]),
)


@given(runs)
def test_it_is_what_takes_the_most(numbers):
    found = find_bottleneck(numbers)
    if found is None:
        assert numbers.path == numbers.write.both == 0
        return
    assert found.sentence.startswith(f"{found.kind}-bound: ")
    if found.kind is Bound.STARTUP:
        assert numbers.startup > numbers.wall / 2
        return
    assert (found.kind is Bound.WRITE) == (numbers.write.both > numbers.path)
    if found.kind is Bound.WRITE:
        return
    of = {
        Bound.FETCH: numbers.device.waiting,
        Bound.DECODE: numbers.device.waiting,
        Bound.DEVICE: numbers.device.busy,
        Bound.SCORE: numbers.score.both,
    }
    if found.kind is Bound.DEVICE and numbers.on == "cpu" and of[found.kind] < max(of.values()):
        assert numbers.decode.busy <= numbers.device.busy
        return
    assert of[found.kind] == max(of.values())
    assert (found.more_cores > 0) == (" more core" in found.sentence)


@given(runs)
def test_so_many_cores_would_keep_up(numbers):
    needed = cores_to_keep_up(numbers)
    rest = numbers.path - numbers.device.waiting
    if needed < MOST_CORES * numbers.cores:
        assert numbers.decode.busy <= needed * rest * (1 + 1e-9)
        assert needed == 0 or numbers.decode.busy > (needed - 1) * rest * (1 - 1e-9)


@given(runs)
def test_slower_decoding_never_needs_fewer_cores(numbers):
    slower = numbers._replace(decode=numbers.decode._replace(busy=numbers.decode.busy * 2 + 1))
    assert cores_to_keep_up(slower) >= cores_to_keep_up(numbers)


# Runs that are bound by one thing, and say so.


@pytest.fixture
def warm(job: Job, tmp_path) -> Job:
    """A job in a process that has imported all it needs: that is not to be the verdict."""
    job(input=write_pictures(tmp_path / "first", 1), output=tmp_path / "warm")
    return job


def verdict(done) -> str:
    assert done.status == 0, done.err
    found = done.record["bottleneck"]
    assert f"\n{found['sentence']}\n" in done.out
    print(json.dumps({name: done.record[name] for name in ("stages", "startup_seconds")}))
    return found["kind"]


def test_large_pictures_are_decode_bound(warm: Job, tmp_path):
    large = encoded(picture(3000, 2000), quality=90)
    folder = tmp_path / "large"
    folder.mkdir()
    for number in range(64):
        # Behind the end of a JPEG: other bytes, the same work.
        (folder / f"{number}.jpg").write_bytes(large + bytes([number]))
    done = warm("--decode=exact", input=folder, batch_size=16)
    assert verdict(done) == "decode"
    assert done.record["bottleneck"]["sentence"].endswith(" or --decode=fast")


def test_a_store_that_answers_late_is_fetch_bound(warm: Job, tmp_path):
    folder = write_pictures(tmp_path / "served", 100)
    manifest = tmp_path / "links.txt"
    with faulty_server(folder=folder, delay=0.2) as server:
        manifest.write_text("".join(f"{server.url}/{number:05d}.jpg\n" for number in range(100)))
        done = warm(input=manifest, read_concurrency=4)
    assert verdict(done) == "fetch"
    assert "--read_concurrency=8" in done.record["bottleneck"]["sentence"]


def test_a_slow_model_is_device_bound(warm: Job, tmp_path):
    slow = {**VIT, "image_size": 224, "layers": 3, "width": 256}
    model = make_checkpoint(tmp_path / "slow", vision=slow)
    done = warm(
        input=write_pictures(tmp_path / "pics", 32), model=f"local-dir:{model}", batch_size=8
    )
    assert verdict(done) == "device"
    told = done.record["device_utilisation"]
    assert 0 < told["share"] <= 1
    assert told["measured_by"] != "NVML"


def test_a_small_run_is_startup_bound(warm: Job, tmp_path):
    assert verdict(warm(input=write_pictures(tmp_path / "few", 2))) == "startup"


def test_the_driver_tells_of_the_device_where_it_can(monkeypatch):
    monkeypatch.setattr("transforms.utilisation.SAMPLE_EVERY_S", 0.01)
    answers = iter([None, 0.25, 0.75])
    asked = threading.Event()

    def driver() -> float | None:
        for answer in answers:
            return answer
        asked.set()
        return None

    with Meter(driver) as meter:
        assert asked.wait(10)
    assert meter.told()["device_utilisation"] == {"share": 0.5, "measured_by": "NVML"}
    assert cuda_share() is None


def test_a_record_reads_back_as_numbers():
    record = {
        "stages": {"device": {"busy": 3.0, "waiting": 1.0}},
        "workers": {"processes": 4, "cores": 8},
        "settings": {"limits": {"concurrency": 5}, "decode": "fast"},
        "model": {"device": "auto", "precision": "bf16"},
        "wall_seconds": 9.0,
        "startup_seconds": None,
    }
    numbers = run_of(record, "cuda")
    assert (numbers.path, numbers.cores, numbers.startup) == (4.0, 2.0, 0.0)
    assert (numbers.concurrency, numbers.decoding, numbers.on) == (5, "fast", "cuda")
