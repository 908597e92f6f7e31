"""Rows of objects that are gone leave the tables, and no others do."""

from __future__ import annotations

import datetime
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from servers import both_stores

from transforms.ledger import TAR_END
from transforms.listing import list_media
from transforms.names import kind_of
from transforms.pruning import Pruned, PruneError, check_prunable, prune
from transforms.publishing import publish
from transforms.records import Input, Selection
from transforms.schemas import embeddings_schema, failures_schema, predictions_schema
from transforms.scopes import scope_of
from transforms.stored import open_parquet, stored_files
from transforms.writing import parquet_bytes, table_file

NOW = datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC)
EVERYTHING = Selection()
SCHEMAS = {
    "embeddings": embeddings_schema(2, ["shelf"]),
    "predictions": predictions_schema(["shelf"]),
    "failures": failures_schema(["shelf"]),
}
Told = str | tuple[str, str | None] | tuple[str, str | None, str]
"""A row: its uri, its id, its version."""


def write(
    output: object, table: str, rows: Sequence[Told], *parts: str, shard: str = "0", **footer: str
) -> str:
    """A file of a table that tells of these items, twice each if they are tagged."""
    schema = SCHEMAS[table].with_metadata({"said": "before", "beamtag_schema": "0", **footer})
    filled = []
    for number, row in enumerate(rows):
        uri, id_, version = (*((row,) if isinstance(row, str) else row), None, "1")[:3]
        values = {
            "modality": "image", "content_sha256": "ab", "bytes": number, "rank": 1,
            "embedding": [0.5, float(number)], "embedded_at": NOW, "tagged_at": NOW,
            "failed_at": NOW, "stage": "read", "reason": "empty", "message": "", "model": "m",
            "retryable": False, "run_id": "r", "score": number / 8, "shelf": f"shelf {number}",
        }  # fmt: skip
        values.update(uri=uri, id=id_, version=version or "1")
        filled += [values] * (2 if table == "predictions" else 1)
    url = table_file(str(output), shard, table, *parts, "dt=2026-01-02")
    publish(url, parquet_bytes(pa.Table.from_pylist(filled, schema=schema), schema.metadata))
    return url


def embeddings(output: object, *rows: Told, shard: str = "0", **footer: str) -> str:
    return write(output, "embeddings", rows, "model=m", shard=shard, **footer)


def read(url: str) -> pa.Table:
    with open_parquet(url) as file:
        return file.read()


def uris(url: str) -> list[str]:
    return read(url).column("uri").to_pylist()


def judged(output: object, *inputs: str, selection: Selection = EVERYTHING) -> Pruned:
    return prune(str(output), [Input(url, kind_of(url)) for url in inputs], selection, "run")


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    folder = tmp_path / "archive"
    for name in ["a.jpg", "b.jpg", "deep/c.png", "odd #1?.jpg", "notes.txt"]:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")
    return folder


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "out"


def test_gone_objects_leave_all_tables(archive, output):
    here, gone = [f"{archive}/{name}" for name in ("b.jpg", "a.jpg")], f"{archive}/gone.jpg"
    rows = [here[0], gone, here[1]]
    files = [
        write(output, "embeddings", rows, "model=m"),
        write(output, "embeddings", rows, "model=other"),
        write(output, "predictions", rows, "label_set=words-1", "model=m"),
        write(output, "predictions", rows, "label_set=words-2", "model=other"),
        write(output, "failures", rows),
    ]
    before = {url: read(url) for url in files}
    untouched = write(output, "predictions", here, "label_set=words-1", "model=m", shard="1")
    stat = os.stat(untouched)
    assert judged(output, str(archive)) == Pruned(files=5, rows=7, items=1)
    for url in files:
        kept = [row for row in before[url].to_pylist() if row["uri"] != gone]
        assert read(url).to_pylist() == kept
        assert read(url).schema.equals(before[url].schema, check_metadata=True)
        assert pq.read_schema(url).metadata == {b"said": b"before", b"beamtag_schema": b"0"}
        assert pq.ParquetFile(url).metadata.row_group(0).column(0).compression == "ZSTD"
    assert os.stat(untouched) == stat
    assert judged(output, str(archive)) == Pruned(0, 0, 0)


def test_a_file_with_no_rows_left_stays(archive, output):
    url = embeddings(output, f"{archive}/gone.jpg")
    schema = pq.read_schema(url)
    assert judged(output, str(archive)) == Pruned(1, 1, 1)
    assert uris(url) == []
    assert pq.read_schema(url).equals(schema, check_metadata=True)
    assert [file.url for file in stored_files(str(output), "embeddings")] == [url]


def test_versions_of_what_is_listed_stay(archive, output):
    url = embeddings(output, (f"{archive}/a.jpg", None, "1"), (f"{archive}/a.jpg", None, "2"))
    assert judged(output, str(archive)) == Pruned(0, 0, 0)
    (archive / "a.jpg").unlink()
    assert judged(output, str(archive)) == Pruned(1, 2, 2)
    assert uris(url) == []


@pytest.mark.parametrize(
    ("given", "selection", "name", "gone"),
    [
        ("", EVERYTHING, "x.jpg", True),
        ("", EVERYTHING, "no/such/x.JPEG", True),
        ("", EVERYTHING, "x #2?.jpg", True),
        ("", EVERYTHING, "[x].jpg", True),
        ("", EVERYTHING, "x.txt", False),
        ("", EVERYTHING, "../elsewhere/x.jpg", False),
        ("", EVERYTHING, "../archives/x.jpg", False),
        ("", EVERYTHING, "deep//x.jpg", False),
        ("", EVERYTHING, "./x.jpg", False),
        ("/", EVERYTHING, "x.jpg", True),
        ("", Selection(extensions=(".txt",)), "x.jpg", False),
        ("", Selection(extensions=(".txt",)), "x.txt", True),
        ("", Selection(include=("deep/**",)), "x.jpg", False),
        ("", Selection(include=("deep/**",)), "deep/x.jpg", True),
        ("", Selection(exclude=("x*",)), "x.jpg", False),
        ("", Selection(exclude=("x*",)), "y.jpg", True),
        ("/*.jpg", EVERYTHING, "x.jpg", True),
        ("/*.jpg", EVERYTHING, "deep/x.jpg", False),
        ("/*", EVERYTHING, "x.anything", True),
        ("/*", Selection(exclude=("x.*",)), "x.anything", False),
        ("/**/*.png", EVERYTHING, "very/deep/x.png", True),
        ("/**/*.png", EVERYTHING, "very/deep/x.jpg", False),
        ("/a.jpg", EVERYTHING, "x.jpg", False),
        ("/a.jpg", EVERYTHING, "a.jpg/x.jpg", False),
    ],
)
def test_only_what_an_input_would_list_is_judged(archive, output, given, selection, name, gone):
    row = f"{archive}/{name}"
    url = embeddings(output, f"{archive}/a.jpg", row)
    assert judged(output, f"{archive}{given}", selection=selection).rows == gone
    assert uris(url) == [f"{archive}/a.jpg", *([] if gone else [row])]


@pytest.mark.parametrize("given", ["", "/*", "/**", "/*/*.png", "/*.jpg", "/a.jpg", "/odd*"])
@pytest.mark.parametrize(
    "selection",
    [
        EVERYTHING,
        Selection(extensions=(".txt", ".png")),
        Selection(include=("*.png", "deep/*.jpg"), exclude=("caf?.jpg",)),
        Selection(exclude=("link/**", "a.jpg")),
    ],
)
def test_a_scope_is_what_is_listed(archive, given, selection):
    """Of all names that are there, through whatever links."""
    (archive / os.fsdecode(b"caf\xe9.jpg")).write_bytes(b"x")
    (archive / "d.jpg").mkdir()
    for name in ("d.jpg/e.jpg", "deep/f.jpg"):
        (archive / name).write_bytes(b"x")
    (archive / "link").symlink_to(archive / "deep")
    (archive / "link.jpg").symlink_to(archive / "a.jpg")
    (archive / "lost.jpg").symlink_to(archive / "nowhere")
    url = f"{archive}{given}"
    scope = scope_of(Input(url, "media"), selection)
    listed = {ref.uri for ref in list_media(url, "media", selection)}
    names = [
        os.path.join(folder, name)
        for folder, _, files in os.walk(archive, followlinks=True)
        for name in files
    ]
    printed = [os.fsencode(name).decode("utf-8", "backslashreplace") for name in names]
    assert len(printed) == 12
    assert {uri for uri in printed if scope.covers(uri)} == listed


def test_a_link_to_a_folder_is_another_place(archive, output, tmp_path):
    (tmp_path / "door").symlink_to(archive)
    (archive / "inner").symlink_to(archive / "deep")
    row = [f"{tmp_path}/door/x.jpg", f"{archive}/inner/c.png", f"{archive}/inner/x.jpg"]
    url = embeddings(output, *row)
    assert judged(output, str(archive)) == Pruned(0, 0, 0)
    assert judged(output, f"{archive}/inner").rows == 1
    assert uris(url) == row[:2]
    assert judged(output, f"{tmp_path}/door").rows == 1
    assert uris(url) == row[1:2]


def test_rows_of_manifests_and_tars_are_not_a_folders(archive, output):
    rows: list[Told] = [
        f"{archive}/list.csv#3.jpg",
        (f"{archive}/list.csv#a.tar#x.jpg", "a.tar#x.jpg"),
        f"{archive}/list[1].txt#3.jpg",
        (f"{archive}/gone.tar#x.jpg", "x"),
        (f"{archive}/gone.TAR.GZ#x.jpg", "x"),
        (f"{archive}/not named so#x.jpg", "x"),
        "gs://elsewhere/x.jpg",
        "https://example.com/x.jpg",
    ]
    url = embeddings(output, *rows)
    before = uris(url)
    for given in ("", "/*", "/**"):
        assert judged(output, f"{archive}{given}") == Pruned(0, 0, 0)
    assert uris(url) == before
    # What a manifest names is an object like any other.
    url = embeddings(output, (f"{archive}/x.jpg", "7"), (f"{archive}/a.jpg", "8"))
    assert judged(output, str(archive)) == Pruned(1, 1, 1)
    assert uris(url) == [f"{archive}/a.jpg"]


@pytest.mark.parametrize("glob", [False, True])
def test_members_of_tars(archive, output, glob):
    for name in ("here.tar", "a#1.tar"):
        (archive / name).write_bytes(b"x")
    kept: list[Told] = [
        (f"{archive}/here.tar#x.jpg", "x"),
        (f"{archive}/here.tar#gone.tar#x.jpg", "gone.tar#x"),
        (f"{archive}/a#1.tar#y #2.jpg", "y #2"),
        f"{archive}/here.tar",
        f"{archive}/gone.tar#not a member.jpg",
        (f"{archive}/m.csv#gone.tar#x.jpg", "gone.tar#x"),
        (f"{archive}/m.csv#x", "x"),
        f"{archive}/gone.jpg",
        ("/elsewhere/gone.tar#x.jpg", "x"),
    ]
    gone: list[Told] = [
        (f"{archive}/gone.tar#x.jpg", "x"),
        (f"{archive}/gone.tar#x #2.txt", "x #2"),
        f"{archive}/gone.tgz",
        (f"{archive}/deep/b#2.tar#z.jpg", "z"),
    ]
    url = embeddings(output, *kept, *gone)
    inputs = [Input(f"{archive}/**/*.tar", "tar"), Input(f"{archive}/**/*.tgz", "tar")]
    if not glob:
        inputs = [Input(str(archive), "tar")]
    # A selection is for media.
    selection = Selection(extensions=(".jpg",), exclude=("*.tar",))
    if glob:
        (archive / "here.tgz").write_bytes(b"x")
    assert prune(str(output), inputs, selection, "run") == Pruned(1, 4, 4)
    assert uris(url) == [row if isinstance(row, str) else row[0] for row in kept]


def test_tars_that_are_not_named_so(archive, output):
    (archive / "blob").write_bytes(b"x")
    rows = [(f"{archive}/blob#x.jpg", "x"), (f"{archive}/gone#x #1.jpg", "x #1")]
    url = embeddings(output, *rows)
    assert prune(str(output), [Input(f"{archive}/*", "tar")], EVERYTHING, "run").rows == 1
    assert uris(url) == [rows[0][0]]


def test_a_pruned_tar_is_not_read_to_its_end(archive, output):
    """Or it would be taken for done when it comes back."""
    (archive / "here.tar").write_bytes(b"x")
    member = (f"{archive}/gone.tar#x.jpg", "x")
    stays = embeddings(output, (f"{archive}/here.tar#x.jpg", "x"), shard=f"{'a' * 16}-a-0000")
    end = {TAR_END.decode(): "1"}
    ends = [
        embeddings(output, shard=f"{'b' * 16}-a-0001", **end),
        embeddings(output, member, shard=f"{'c' * 16}-a-0000", **end),
    ]
    others = [
        embeddings(output, shard=f"{'a' * 16}-a-0001", **end),
        embeddings(output, shard=f"{'d' * 16}-a-0000", **end),
    ]
    first = embeddings(output, member, shard=f"{'b' * 16}-a-0000")
    assert judged(output, f"{archive}/*.tar") == Pruned(3, 2, 1)
    for url in ends:
        assert pq.read_schema(url).metadata == {b"said": b"before", b"beamtag_schema": b"0"}
    for url in others:
        assert TAR_END in pq.read_schema(url).metadata
    assert (uris(first), uris(stays)) == ([], [f"{archive}/here.tar#x.jpg"])


def test_several_inputs_judge_together(archive, output):
    rows = [f"{archive}/deep/x.png", f"{archive}/x.txt", f"{archive}/notes.txt", f"{archive}/x.jpg"]
    url = embeddings(output, *rows)
    assert judged(output, f"{archive}/deep", f"{archive}/*s.txt", f"{archive}/a.jpg").rows == 1
    assert uris(url) == rows[1:]
    assert judged(output, str(archive), f"{archive}/*.txt", f"{archive}/*.txt").rows == 2
    assert uris(url) == [f"{archive}/notes.txt"]


def test_a_manifest_is_no_listing(archive, output):
    url = embeddings(output, f"{archive}/gone.jpg")
    inputs = [Input(str(archive), "media"), Input(f"{archive}/m.csv", "manifest")]
    with pytest.raises(PruneError, match="--prune needs folders, globs or tars") as caught:
        check_prunable(inputs)
    assert "\n" not in str(caught.value)
    with pytest.raises(PruneError):
        prune(str(output), inputs, EVERYTHING, "run")
    assert uris(url) == [f"{archive}/gone.jpg"]
    check_prunable(inputs[:1])


@pytest.mark.parametrize(
    "given", ["empty", "missing", "missing.jpg", "empty/*.jpg", "missing/*", "[m]issing"]
)
def test_an_input_that_lists_nothing_prunes_nothing(archive, output, tmp_path, given):
    (tmp_path / "empty").mkdir()
    url = f"{tmp_path}/{given}"
    lost = url if "." in url or "*" in url else f"{url}/x.jpg"
    embeddings(output, f"{archive}/gone.jpg", lost.replace("*", "x"))
    before = contents(output)
    with pytest.raises(PruneError) as caught:
        judged(output, str(archive), url)
    assert str(caught.value).startswith(f"nothing is listed under {url}: not pruned; ")
    assert "\n" not in str(caught.value)
    assert contents(output) == before


def test_an_input_that_lists_nothing_and_had_nothing(archive, output, tmp_path):
    (tmp_path / "empty").mkdir()
    url = embeddings(output, f"{archive}/a.jpg", f"{archive}/gone.jpg", f"{tmp_path}/empty/x.txt")
    assert judged(output, f"{tmp_path}/empty", str(archive)).rows == 1
    assert uris(url) == [f"{archive}/a.jpg", f"{tmp_path}/empty/x.txt"]


def test_a_link_to_a_place_that_is_not_mounted(output, tmp_path):
    """It is listed itself, and what was behind it is not said to be gone."""
    (tmp_path / "door.jpg").symlink_to(tmp_path / "unmounted")
    url = embeddings(output, f"{tmp_path}/door.jpg/x.jpg")
    assert judged(output, f"{tmp_path}/door.jpg") == Pruned(0, 0, 0)
    assert uris(url) == [f"{tmp_path}/door.jpg/x.jpg"]


def test_an_output_without_tables(archive, output):
    assert judged(output, str(archive)) == Pruned(0, 0, 0)


def test_broken_off_between_any_two_files(archive, output, tmp_path):
    member = (f"{archive}/gone.tar#x.jpg", "x")
    (archive / "here.tar").write_bytes(b"x")
    for shard in ("0", "1"):
        embeddings(output, f"{archive}/gone.jpg", f"{archive}/a.jpg", shard=shard)
        write(output, "failures", [f"{archive}/gone.jpg"], shard=shard)
        embeddings(output, member, shard=f"{'b' * 16}-a-000{shard}")
    embeddings(output, shard=f"{'b' * 16}-a-0002", **{TAR_END.decode(): "1"})
    inputs = (str(archive), f"{archive}/*.tar")
    whole = tmp_path / "whole"
    shutil.copytree(output, whole)
    # In the order of writing, which the times of the files tell.
    assert judged(whole, *inputs).files == 7
    done, before = contents(whole), contents(output)
    written = sorted(
        (name for name in done if done[name] != before[name]),
        key=lambda name: (whole / name).stat().st_mtime_ns,
    )
    assert "b-a-0002" in written[0]
    for count in range(len(written)):
        broken = tmp_path / f"broken-{count}"
        shutil.copytree(output, broken)
        for name in written[:count]:
            shutil.copy(whole / name, broken / name)
        assert judged(broken, *inputs).files == 7 - count
        assert contents(broken) == done


class Growing(MemoryFileSystem):
    """A store in which another run embeds a new object each time that something is listed."""

    protocol = "growing"
    store: dict = {}  # noqa: RUF012
    pseudo_dirs: list = [""]  # noqa: RUF012
    output = ""

    @classmethod
    def _strip_protocol(cls, path):
        return "/" + path.removeprefix("growing://").strip("/")

    def ls(self, path, detail=True, **kwargs):
        listed = super().ls(path, detail=detail, **kwargs)
        embeddings(self.output, "growing:///in/new.jpg", shard="new")
        self.pipe_file("/in/new.jpg", b"x")
        return listed


def test_what_another_run_adds_meanwhile_stays(output):
    fsspec.register_implementation("growing", Growing, clobber=True)
    Growing.output = str(output)
    fsspec.filesystem("growing").pipe_file("/in/a.jpg", b"x")
    old = embeddings(output, "growing:///in/a.jpg", "growing:///in/gone.jpg")
    assert judged(output, "growing://in") == Pruned(1, 1, 1)
    assert uris(old) == ["growing:///in/a.jpg"]
    assert uris(old.replace("shard-0", "shard-new")) == ["growing:///in/new.jpg"]


NAMES = ["a[1].jpg", "what?.jpg", "été/猫 1.jpg", "hash#percent%20.jpg", "x::y.jpg", "d//e.jpg"]


@pytest.fixture(scope="module")
def stores() -> Iterator[None]:
    with both_stores("archive", "tables"):
        yield


@pytest.mark.parametrize("scheme", ["s3", "gs"])
def test_on_a_store(stores, scheme):
    store = fsspec.filesystem(scheme)
    for name in [*NAMES, "set/here.tar"]:
        store.pipe_file(f"archive/in/{name}", b"x")
    place, output = f"{scheme}://archive/in", f"{scheme}://tables/out"
    members = [(f"{place}/set/{name}.tar#x.jpg", "x") for name in ("here", "gone")]
    elsewhere = [f"{scheme}://archive/inn/x.jpg", f"{scheme}://other/in/x.jpg"]
    rows = [*(f"{place}/{name}" for name in NAMES), *elsewhere]
    url = embeddings(output, *rows, *members)
    tags = write(output, "predictions", rows, "label_set=w-1", "model=m")
    assert judged(output, place) == Pruned(0, 0, 0)
    # Not by s3fs's `rm`, to which names are globs.
    for name in NAMES[1::2]:
        store.rm_file(f"archive/in/{name}")
    assert judged(output, place, f"{place}/set/*.tar") == Pruned(2, 10, 4)
    left = [*(f"{place}/{name}" for name in NAMES[::2]), *elsewhere]
    assert uris(url) == [*left, members[0][0]]
    assert uris(tags) == [uri for uri in left for _ in range(2)]
    store.rm_file(f"archive/in/{NAMES[2]}")
    with pytest.raises(PruneError, match=f"nothing is listed under {place}/été: "):
        judged(output, place, f"{place}/été")
    assert uris(url) == [*left, members[0][0]]
