"""`beamtag verify`, as a person meets it: damage that is planted, and outputs that are sound."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import fsspec
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from conftest import LABELS, Job, encoded, picture, write_pictures
from damage import DAMAGES, Found, Stored, change, column, put
from faulty import faulty_server
from packing import pack
from servers import both_stores, free_port

from pipelines import tag, verify
from transforms.runlock import take_place
from transforms.stored import read_columns

COLOURS = "name: colours\nlabels: [red, green]\nthreshold: 0.99\n"


class Verified(NamedTuple):
    status: int
    found: Found
    told: dict[str, Any]


Verify = Callable[..., Verified]


@pytest.fixture
def verified(capfd: pytest.CaptureFixture[str]) -> Verify:
    """`beamtag verify`, asked twice: what people read is what it gives as JSON."""

    def run(output: object, *arguments: str) -> Verified:
        capfd.readouterr()
        status = verify.main([f"--output={output}", "--json", *arguments])
        printed = capfd.readouterr()
        assert printed.err == ""
        told = json.loads(printed.out)
        assert verify.main([f"--output={output}", *arguments]) == status
        *lines, summary = capfd.readouterr().out.splitlines()
        findings = [
            f"{each['kind']}: {each['url']}: {each['message']}" for each in told["findings"]
        ]
        assert lines == [*findings, *(f"note: {note}" for note in told["notes"])]
        counts = [told["files"], told["rows"], told["items"], len(findings)]
        words = [words.split() for words in summary.split(", ")]
        assert [int(number.replace(",", "")) for number, _ in words] == counts
        assert [what.rstrip("s") for _, what in words] == ["file", "row", "item", "finding"]
        found = {(each["kind"], each["url"]) for each in told["findings"]}
        assert len(set(findings)) == len(findings), "a finding twice"
        return Verified(status, found, told)

    return run


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures, some of the same bytes and some broken; texts; a tar; a manifest of odd rows."""
    root = tmp_path_factory.mktemp("archive")
    folder = write_pictures(root / "pictures", 20)
    for name, source in (("copy", 3), ("again", 3), ("other copy", 4)):
        shutil.copy(folder / f"{source:05d}.jpg", folder / f"{name}.jpg")
    for name in ("bad", "worse"):
        (folder / f"{name}.jpg").write_bytes(b"<html>not found</html>")
    for number in range(4):
        put(f"a photo of {number} dogs".encode() * (number > 0), root / f"texts/{number}.txt")
    members = [(f"{n} #{n}.jpg", encoded(picture(seed=90 + n))) for n in range(5)]
    put(pack([*members, ("broken.jpg", b"x"), ("copy.jpg", members[0][1])]), root / "set.tar")
    rows = [
        {"id": "1", "uri": "pictures/00001.jpg"},
        {"id": "2", "uri": "pictures/00001.jpg", "text": "a dog"},
        {"id": "3", "text": "a cat"},
        {"id": "4", "uri": "pictures/missing.jpg"},
        {"id": "5"},
    ]
    put("".join(json.dumps(row) + "\n" for row in rows).encode(), root / "rows.jsonl")
    return root


@pytest.fixture(scope="module")
def inputs(archive: Path) -> list[str]:
    names = ("pictures", "texts/*.txt", "set.tar", "rows.jsonl")
    return [f"--input={archive}/{name}" for name in names]


@pytest.fixture(scope="module")
def sound(inputs, vit: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real job's output, to be copied."""
    root = tmp_path_factory.mktemp("sound")
    for name, labels in (("things", LABELS), ("colours", COLOURS)):
        put(labels.encode(), root / f"{name}.yaml")
    flags = [
        f"--labels={root}/things.yaml", f"--labels={root}/colours.yaml", "--shard_size=6",
        f"--model=local-dir:{vit}", f"--output={root}/out", "--quiet", "--run_date=2026-01-31",
    ]  # fmt: skip
    assert tag.main([*inputs, *flags]) == 0
    return root / "out"


@pytest.fixture
def stored(sound: Path, tmp_path: Path) -> Stored:
    """Somewhere else than its records say: an output may be moved."""
    return Stored(shutil.copytree(sound, tmp_path / "out"))


def test_a_sound_output_has_no_findings(verified, stored, inputs):
    for given in ([], inputs):
        done = verified(stored.root, *given)
        assert (done.status, done.found, done.told["notes"]) == (0, set(), [])
    tables = list(stored.root.rglob("*.parquet"))
    assert done.told["files"] == len(tables)
    assert done.told["rows"] == sum(pq.read_metadata(path).num_rows for path in tables)
    counts = json.loads(stored.record.read_text())["counts"]
    assert counts["failed"] > 2
    assert counts["duplicates"] > 2
    assert done.told["items"] == counts["listed"]


@pytest.mark.parametrize("name", DAMAGES)
def test_planted_damage_is_found_and_nothing_else(verified, stored, name):
    expected = {(kind, str(path)) for kind, path in DAMAGES[name](stored)}
    done = verified(stored.root)
    assert done.found == expected
    assert done.status == 1


def test_several_damages_are_all_told_each_in_a_line(stored, capfd):
    """Whatever is in a name; what a run may be at right now is not excused by a lock."""
    assert verify.main([f"--output={stored.root}", "--quiet"]) == 0
    assert capfd.readouterr() == ("", "")
    odd = put(b"", stored.root / "failures" / "odd\nname\x1b[2J.parquet")
    shown = str(odd).replace("\n", "\\n").replace("\x1b", "\\x1b")
    stored.tags[0].unlink()
    record, vectors = stored.record, stored.vectors
    vectors.write_bytes(vectors.read_bytes()[:-40])
    with take_place(str(stored.root), "night-2"):
        assert verify.main([f"--output={stored.root}", "--quiet"]) == 1
    printed = capfd.readouterr()
    lines = printed.out.splitlines()
    assert printed.err == ""
    assert sorted(line.split(": ")[0] for line in lines) == [
        "bad_record", "missing_predictions", "stray_file", "unreadable",
    ]  # fmt: skip
    assert lines[0] == f"stray_file: {shown}: is not named as a file of failures"
    assert lines[1].startswith(f"bad_record: {record}: 1 file of it is not there, such as pred")
    assert {line.split(": ")[1] for line in lines[2:]} == {str(vectors)}


@pytest.mark.parametrize("status", ["running", "interrupted", "failed"])
def test_a_run_that_has_not_ended_is_no_finding(verified, stored, status):
    """Nor are predictions of its label sets looked for before it has."""
    told = json.loads(stored.record.read_text())
    later = {"started_at": "2999-01-01T00:00:00.000+00:00", "label_sets": {"more-1": {}}}
    kept = {name: told[name] for name in ("model_id", "run_date", "output")}
    unfinished = stored.root / "runs" / "later.json"
    unfinished.write_text(json.dumps({**kept, **later, "run_id": "later", "status": status}))
    assert verified(stored.root).status == 0
    unfinished.write_text(json.dumps({**told, **later}))
    lacking = {str(path) for path in (stored.root / "embeddings").rglob("*.parquet")}
    assert verified(stored.root).found == {("missing_predictions", url) for url in lacking}


def test_a_run_that_holds_the_output_is_a_note(verified, stored):
    lock = stored.root / "_beamtag_lock.json"
    with take_place(str(stored.root), "night-2"):
        done = verified(stored.root)
        (note,) = done.told["notes"]
        assert (done.status, done.found) == (0, set())
        assert note.startswith(f"{lock}: run night-2 (host ")
    for content in (b"{}", b"\xff", b"[" * 100_000, b"3"):
        lock.write_bytes(content)
        done = verified(stored.root)
        assert (done.status, len(done.told["notes"])) == (0, 1)
    lock.unlink()
    assert verified(stored.root).told["notes"] == []


# What is listed.


def test_what_is_listed_and_is_not_there_is_found(verified, stored, archive, inputs):
    """New objects, changed ones, and those whose rows are lost, each as its input names it."""
    lost = str(archive / "pictures" / "bad.jpg")
    for path in (stored.root / "failures").rglob("*.parquet"):
        change(path, lambda table: table.filter(pc.field("uri") != lost))
    places = {name: archive / name for name in ("pictures", "texts", "set.tar", "rows.jsonl")}
    new, text = places["pictures"] / "new.jpg", places["texts"] / "new.txt"
    rows, tar = places["rows.jsonl"].read_bytes(), places["set.tar"].read_bytes()
    changed = places["pictures"] / "00007.jpg"
    before = changed.read_bytes()
    stat = changed.stat()
    more = {"id": "6", "uri": "pictures/00002.jpg"}
    try:
        for path in (new, text):
            put(b"x", path)
        put(before + b" ", changed)
        put(rows + json.dumps(more).encode(), places["rows.jsonl"])
        put(tar, archive / "sets" / "other.tar")
        done = verified(stored.root, *inputs, f"--input={archive}/sets/*.tar")
    finally:
        new.unlink()
        text.unlink()
        put(before, changed)
        os.utime(changed, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        put(rows, places["rows.jsonl"])
        (archive / "sets" / "other.tar").unlink()
    assert done.status == 1
    uris = [lost, new, text, changed, archive / "pictures/00002.jpg", archive / "sets/other.tar"]
    assert done.found == {("missing_item", str(uri)) for uri in uris}


def test_what_one_model_holds_another_lacks(verified, stored, archive, inputs):
    """What cannot be read is a failure of every model's, what a model cannot take is its own."""
    model, vectors = json.loads(stored.record.read_text())["model_id"], stored.vectors
    for table in ("embeddings", "predictions"):
        for path in list((stored.root / table).rglob("*.parquet")):
            # A model that has one shard less, and no run of its own.
            if path.name != vectors.name:
                put(path.read_bytes(), Path(str(path).replace(model, "other-1")))
    lacking = {row["uri"] for row in pq.read_table(vectors).to_pylist()}
    assert verified(stored.root, *inputs).status == 0
    assert verified(stored.root, *inputs, f"--model_id={model}").status == 0
    done = verified(stored.root, *inputs, "--model_id=other-1")
    assert done.found == {("missing_item", uri) for uri in lacking}
    stage = ["embed" if row["stage"] else "" for row in pq.read_table(stored.failures).to_pylist()]
    change(stored.failures, lambda table: column(table, "stage", stage))
    uris = set(pq.read_table(stored.failures).column("uri").to_pylist())
    uris = {uri for uri in uris if "set.tar#" not in uri}
    assert verified(stored.root, *inputs).status == 0
    done = verified(stored.root, *inputs, "--model_id=other-1")
    assert done.found == {("missing_item", uri) for uri in lacking | uris}


def test_only_so_many_missing_items_are_told(verified, stored, tmp_path):
    rows = tmp_path / "many.csv"
    rows.write_text("uri\n" + "".join(f"{number}.jpg\n" for number in range(1234)))
    done = verified(stored.root, f"--input={rows}")
    told = [str(tmp_path / f"{number}.jpg") for number in range(100)]
    assert done.found == {("missing_item", url) for url in [*told, str(rows)]}
    assert done.told["findings"][-1]["message"].startswith("1,134 more items neither embedded by ")


def test_a_job_and_verify_agree_about_odd_inputs(verified, job: Job, tmp_path):
    """Whatever a job makes of an input, it is in the tables, and verify finds it there."""
    folder = write_pictures(tmp_path / "in", 2)
    whole = pack([("a.jpg", encoded(picture(seed=5)))])
    odd = [
        "uri,id,version,text", "00000.jpg,1,,", ",2,,", "00000.jpg,3,v7,a dog", "b.jpg,4,v8,",
        "s3:///,5,,", "00001.jpg,,,", "00001.jpg,7,,a cat", "http://127.0.0.1:9/x.jpg,8,,",
        ",9,,only words", "00000.jpg#x,10,,",
    ]  # fmt: skip
    for name, content in {
        "whole #1.tar": whole, "empty.tar": pack([]), "cut.tar": whole[:3000],
        "odd.csv": "\n".join(odd).encode(), "empty.txt": b"\n",
    }.items():  # fmt: skip
        put(content, folder / name)
    with faulty_server(folder=folder) as web:
        given = [
            f"{folder}/*.tar", f"{folder}/odd.csv", f"{folder}/empty.txt",
            f"{web.url}/00001.jpg", f"{web.url}/cut.tar",
        ]  # fmt: skip
        inputs = [f"--input={url}" for url in given]
        done = job(*inputs, read_deadline=2)
        assert done.status == 0, done.err
        assert verified(done.output, *inputs).found == set()
        # And of each that it is missing elsewhere.
        put(whole, folder / "new.tar")
        put((folder / "odd.csv").read_bytes().replace(b",7,", b",77,"), folder / "odd.csv")
        put(encoded(picture(seed=9)), folder / "00001.jpg")
        found = verified(done.output, *inputs).found
    uris = [folder / "new.tar", folder / "00001.jpg", f"{web.url}/00001.jpg"]
    assert found == {("missing_item", str(uri)) for uri in uris}


# What a job leaves behind, night by night.


def test_nights_leave_nothing_to_find(verified, job: Job, tmp_path, vit):
    """Pictures come, change and go, labels change, failures are tried again, a run is killed."""
    folder, labels, output = tmp_path / "archive", tmp_path / "words.yaml", tmp_path / "out"
    write_pictures(folder, 8)
    shutil.copy(folder / "00001.jpg", folder / "copy.jpg")
    put(b"<html>", folder / "bad.jpg")
    put(pack([("a.jpg", encoded(picture(seed=40))), ("b.jpg", b"x")]), tmp_path / "set.tar")
    labels.write_text(LABELS)
    inputs = [f"--input={folder}", f"--input={tmp_path}/*.tar"]

    def night(day: int, *flags: str) -> None:
        done = job(
            *inputs,
            *flags,
            labels=labels,
            output=output,
            shard_size=3,
            run_date=f"2026-02-{day:02}",
        )
        assert done.status == 0, done.err
        found = verified(output, *inputs)
        assert (found.status, found.found, found.told["notes"]) == (0, set(), [])

    night(1)
    night(2)
    labels.write_text(LABELS.replace("dog", "horse"))
    put(encoded(picture(seed=50)), folder / "new.jpg")
    put(encoded(picture(seed=51)), folder / "00000.jpg")
    night(3, "--retry=all")
    (folder / "00002.jpg").unlink()
    (folder / "copy.jpg").unlink()
    (tmp_path / "set.tar").rename(tmp_path / "moved.tar")
    put(encoded(picture(seed=52)), folder / "bad.jpg")
    night(4, "--prune")
    uris = {row["uri"] for row in ds.dataset(output / "embeddings").to_table().to_pylist()}
    assert str(folder / "00002.jpg") not in uris

    # Killed as it gives the first file of predictions its name: nothing of the shard is tagged.
    write_pictures(folder, 11)
    script = """
        import os, signal, sys
        def kill(event, told):
            if event == "os.rename" and "/predictions/" in str(told[1]):
                os.kill(os.getpid(), signal.SIGKILL)
        sys.addaudithook(kill)
        from pipelines import tag
        tag.main(sys.argv[1:])
    """
    flags = [f"--labels={labels}", f"--output={output}", f"--model=local-dir:{vit}", "--quiet"]
    killed = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), *inputs, *flags, "--run_date=2026-02-05"],
        env={**os.environ, "PYTHONPATH": os.getcwd()},
    )
    assert killed.returncode == -signal.SIGKILL
    (left,) = output.rglob("*.aside")
    (vectors,) = output.glob("embeddings/*/dt=2026-02-05/*")
    done = verified(output)
    assert done.found == {("leftover", str(left)), ("missing_predictions", str(vectors))}
    assert "holds the output" in done.told["notes"][0]
    night(6)


@pytest.fixture(scope="module")
def stores() -> Iterator[None]:
    with both_stores("archive", "tables"):
        yield


@pytest.mark.parametrize("scheme", ["s3", "gs"])
def test_on_a_store(verified, stores, job: Job, scheme):
    store = fsspec.filesystem(scheme)
    names = ["a[1].jpg", "what?.jpg", "été/猫.jpg", "hash#percent%20.jpg"]
    for number, name in enumerate(names):
        store.pipe_file(f"archive/in/{name}", encoded(picture(seed=number)))
    store.pipe_file("archive/in/bad.jpg", b"<html>")
    given, output = f"--input={scheme}://archive/in", f"{scheme}://tables/out [1]"
    done = job(given, output=output, shard_size=2)
    assert done.status == 0, done.err
    assert verified(output, given).found == set()
    files = [f"{scheme}://{path}" for path in store.find("tables/out [1]/")]
    vectors = next(url for url in files if "/embeddings/" in url)
    tags = next(url for url in files if "/predictions/" in url and url.endswith(vectors[-20:]))
    record = next(url for url in files if "/runs/" in url)
    lost = set(read_columns(vectors, ["uri"]).column("uri").to_pylist())
    store.pipe_file(vectors, store.cat_file(vectors)[:-40])
    store.rm_file(tags)
    store.pipe_file(f"{vectors}.gz", b"")
    store.pipe_file("archive/in/new.jpg", b"x")
    found = verified(output, given).found
    store.rm_file("archive/in/new.jpg")
    assert found == {
        ("unreadable", vectors), ("missing_predictions", vectors), ("bad_record", record),
        ("stray_file", f"{vectors}.gz"),
        *(("missing_item", uri) for uri in {*lost, f"{scheme}://archive/in/new.jpg"}),
    }  # fmt: skip


# What cannot be checked.


def refused(capfd: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    """The exit status, and the one line that is printed."""
    capfd.readouterr()
    status = verify.main(arguments)
    printed = capfd.readouterr()
    assert printed.out == ""
    (line,) = printed.err.splitlines()
    return status, line.removeprefix("beamtag verify: ")


def test_an_output_that_is_not_there_or_cannot_be_asked(stores, capfd, tmp_path):
    urls = [tmp_path, tmp_path / "none", "memory://none", "s3://tables/none", "gs://tables/none"]
    for url in map(str, urls):
        said = f"failed: FileNotFoundError: there are no tables in {url}"
        for flags in ([], ["--json"], ["--quiet"]):
            assert refused(capfd, f"--output={url}", *flags) == (1, said)
    closed = f"http://127.0.0.1:{free_port()}"
    options = {"s3": {"endpoint_url": closed, "config_kwargs": {"retries": {"max_attempts": 1}}}}
    for url, more in {
        "s3://no-such-bucket/out": [],
        "gs://no-such-bucket/out": [],
        "s3://tables/out": [f"--storage_options={json.dumps(options)}"],
    }.items():
        status, line = refused(capfd, f"--output={url}", *more)
        assert (status, line[:8]) == (1, "failed: ")
        assert "no-such-bucket" in line or closed.rpartition("/")[2] in line


def test_bad_usage_is_told_in_a_line(stored, archive, capfd, tmp_path):
    (tmp_path / "odd.csv").write_text("name\nx.jpg\n")
    output, pictures = f"--output={stored.root}", f"--input={archive}/pictures"
    model = json.loads(stored.record.read_text())["model_id"]
    for said, *arguments in [
        ("the following arguments are required: --output",),
        ("--output: is empty", "--output="),
        ("nothing can be written to http", "--output=http://127.0.0.1/out"),
        ("nothing after ://", "--output=s3://"),
        ("--output=nosuch://out: ", "--output=nosuch://out"),
        ("unrecognized arguments: --verbose", output, "--verbose"),
        ("--out", f"--out={stored.root}"),
        ("--storage_options", output, "--storage_options=[3]"),
        ("--include is about --input, which is not given", output, "--include=*.jpg"),
        ("--model_id is about --input", output, f"--model_id={model}"),
        ("--input_format is about --input", output, "--input_format=auto"),
        ("--exclude", output, pictures, "--exclude="),
        (f"--input={tmp_path}/none does not exist", output, f"--input={tmp_path}/none"),
        ("cannot look at --input=nosuch://x: ValueError", output, "--input=nosuch://x"),
        ("a**b", output, f"--input={tmp_path}/a**b/*.jpg"),
        ("odd.csv", output, f"--input={tmp_path}/odd.csv"),
        (f"no such model (it has {model})", output, pictures, "--model_id=other"),
    ]:
        status, line = refused(capfd, *arguments)
        assert (status, line[:7]) == (2, "error: "), line
        assert said in line
    assert sorted(path.name for path in tmp_path.iterdir()) == ["odd.csv", "out"]


def test_a_chosen_part_of_an_input(verified, stored, archive):
    """As for tag: a selection, and what the inputs' files are."""
    folder = archive / "pictures"
    lost = [str(folder / name) for name in ("00001.jpg", "bad.jpg")]
    for table in ("embeddings", "failures"):
        for path in (stored.root / table).rglob("*.parquet"):
            change(path, lambda table: table.filter(~pc.field("uri").isin(lost)))
    missing = {("missing_item", uri) for uri in lost}

    def told(*flags: str) -> Found:
        found = verified(stored.root, f"--input={folder}", *flags).found
        return {each for each in found if each[0] == "missing_item"}

    assert told() == told("--extensions=jpg,txt") == missing
    assert told("--include=0*") == told("--exclude=bad*") == {("missing_item", lost[0])}
    assert told("--extensions=png") == set()
    # One text is a manifest unless told otherwise, and no item is named as its first line.
    text = f"--input={archive}/texts/1.txt"
    (kind, uri), *_ = verified(stored.root, text).found - verified(stored.root).found
    assert (kind, uri) == ("missing_item", f"{archive}/texts/a photo of 1 dogs")
    more = verified(stored.root, text, "--input_format=media").found
    assert more == verified(stored.root).found
