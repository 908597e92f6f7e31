"""The whole job on everything that people have: manifests, tars, texts, pairs, parts of folders."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import Job, Outcome, encoded, picture, write_pictures
from faulty import faulty_server
from pictures import HEIGHT, WIDTH, heics, varieties
from PIL import Image


def vectors(done: Outcome) -> dict[str, np.ndarray]:
    return {row["uri"]: np.array(row["embedding"]) for row in done.table("embeddings")}


def names(done: Outcome, root: Path, table: str = "embeddings") -> list[str]:
    return sorted({str(Path(row["uri"]).relative_to(root)) for row in done.table(table)})


# Folders and globs, in part.


@pytest.fixture
def archive(tmp_path) -> Path:
    root = write_pictures(tmp_path / "archive", 2)
    write_pictures(root / "raw", 2)
    write_pictures(root / "raw" / "thumbs", 1)
    (root / "raw" / "x.png").write_bytes(encoded(picture(seed=9), "PNG"))
    (root / "raw" / "notes.txt").write_text("a dog in the grass")
    return root


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--include=*.png"], ["raw/x.png"]),
        (["--include=raw/*"], ["raw/00000.jpg", "raw/00001.jpg", "raw/x.png"]),
        (
            ["--exclude=**/thumbs/**", "--exclude=*1.jpg"],
            ["00000.jpg", "raw/00000.jpg", "raw/x.png"],
        ),
        (["--include=raw/**", "--exclude=*.jpg"], ["raw/x.png"]),
        (["--extensions=png,.TXT"], ["raw/notes.txt", "raw/x.png"]),
    ],
)  # fmt: skip
def test_parts_of_a_folder(job: Job, archive, flags, expected):
    done = job(*flags, input=archive)
    assert done.status == 0, done.err
    assert names(done, archive) == expected
    assert done.record["counts"]["listed"] == len(expected)


def test_parts_of_a_glob(job: Job, archive):
    done = job("--include=thumbs/*", "--include=x.*", input=archive / "raw" / "**")
    assert names(done, archive) == ["raw/thumbs/00000.jpg", "raw/x.png"]
    done = job(input=archive / "raw" / "*", output=archive.parent / "all")
    assert names(done, archive) == ["raw/00000.jpg", "raw/00001.jpg", "raw/notes.txt", "raw/x.png"]


# Pictures of every kind.


def test_every_kind_of_picture_gives_the_vector_of_its_pixels(job: Job, tmp_path):
    """Each file under a name that tells nothing, beside a PNG of the pixels it must give."""
    shelf = tmp_path / "kinds"
    shelf.mkdir()
    kinds = {}
    for number, variety in enumerate([*varieties(), *heics(picture(WIDTH, HEIGHT))]):
        (shelf / f"{number:03d}.bin").write_bytes(variety.data)
        (shelf / f"{number:03d}.png").write_bytes(encoded(Image.fromarray(variety.pixels), "PNG"))
        kinds[f"{number:03d}"] = variety.name
    done = job(input=shelf / "*")
    assert done.status == 0, done.err
    assert [(row["uri"], row["message"]) for row in done.table("failures")] == []
    found = {Path(uri).name: vector for uri, vector in vectors(done).items()}
    assert len(found) == 2 * len(kinds)
    off = {
        name: float(found[f"{number}.bin"] @ found[f"{number}.png"])
        for number, name in kinds.items()
    }
    assert {name: cosine for name, cosine in off.items() if cosine < 0.995} == {}


# Manifests.

ROWS = [
    dict(zip(("uri", "text", "version", "id", "owner", "year"), row, strict=True))
    for row in (
        ("0.jpg", "a brown dog", "v7", "n0", "ann", 1999),
        ("1.jpg", None, None, None, None, None),
        (None, 'only words, "quoted",\nin two lines', None, "w", "bob", 3),
        ("gone.jpg", None, "v1", "g", "cy", 4),
    )
]


def as_csv(rows: list[dict]) -> bytes:
    def cell(value: object) -> str:
        return "" if value is None else '"' + str(value).replace('"', '""') + '"'

    lines = [",".join(rows[0]), *(",".join(cell(value) for value in row.values()) for row in rows)]
    return "\r\n".join(lines).encode()


def as_jsonl(rows: list[dict]) -> bytes:
    return "\n".join(json.dumps(row) for row in rows).encode()


def as_parquet(rows: list[dict]) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), buffer)
    return buffer.getvalue()


@pytest.fixture
def shelf(tmp_path) -> Path:
    shelf = tmp_path / "shelf"
    shelf.mkdir()
    for number in range(3):
        (shelf / f"{number}.jpg").write_bytes(encoded(picture(seed=number)))
    return shelf


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("list.csv", as_csv(ROWS)),
        ("list.csv.gz", gzip.compress(as_csv(ROWS))),
        ("list.jsonl", as_jsonl(ROWS)),
        ("list.jsonl.gz", gzip.compress(as_jsonl(ROWS))),
        ("list.parquet", as_parquet(ROWS)),
    ],
)
def test_manifests_with_columns(job: Job, shelf, name, content):
    (shelf / name).write_bytes(content)
    done = job("--carry=owner,year", input=shelf / name)
    assert done.status == 0, done.err
    rows = {row["id"]: row for row in done.table("embeddings")}
    assert {key: row["modality"] for key, row in rows.items()} == {
        "n0": "pair", None: "image", "w": "text",
    }  # fmt: skip
    assert rows["n0"]["uri"] == str(shelf / "0.jpg")
    assert rows["n0"]["version"].startswith("v7+text-")
    assert rows["w"]["uri"] == f"{shelf / name}#w"
    assert [(row["owner"], row["year"]) for row in rows.values()] == [
        ("ann", "1999"), (None, None), ("bob", "3"),
    ]  # fmt: skip
    (failure,) = done.table("failures")
    assert (failure["id"], failure["reason"], failure["owner"]) == ("g", "not_found", "cy")
    assert {row["owner"] for row in done.table("predictions") if row["id"] == "n0"} == {"ann"}
    assert done.record["modalities"] == {"pair": 1, "image": 1, "text": 1}
    assert done.record["counts"] == {
        "listed": 4, "reused": 0, "embedded": 3, "duplicates": 0, "failed": 1,
    }  # fmt: skip


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_a_manifest_of_lines(job: Job, shelf, pack):
    name = "list.txt.gz" if pack is gzip.compress else "list.txt"
    (shelf / "été [1]#%20.jpg").write_bytes(encoded(picture(seed=5)))
    lines = f"\ufeff0.jpg\r\n\r\n{shelf}/1.jpg\nété [1]#%20.jpg\n0.jpg\n"
    (shelf / name).write_bytes(pack(lines.encode()))
    done = job(input=shelf / name)
    assert done.status == 0, done.err
    # A line that is there twice is one item.
    assert names(done, shelf) == ["0.jpg", "1.jpg", "été [1]#%20.jpg"]


def test_several_manifests_by_a_glob(job: Job, shelf):
    for number in range(3):
        (shelf / f"part-{number}.csv").write_text(f"uri\n{number}.jpg\n")
    done = job(input=shelf / "part-*.csv")
    assert names(done, shelf) == ["0.jpg", "1.jpg", "2.jpg"]


def test_rows_that_cannot_be_used_are_failures(job: Job, shelf):
    lines = [
        '{"uri": "0.jpg"}',
        "{broken",
        '["a"]',
        '{"owner": "x"}',
        '{"uri": 7}',
        '{"uri": "1.jpg"}',
    ]
    (shelf / "list.jsonl").write_text("\n".join(lines))
    done = job(input=shelf / "list.jsonl")
    assert done.status == 0, done.err
    assert names(done, shelf) == ["0.jpg", "1.jpg"]
    failures = done.table("failures")
    assert [row["uri"].rpartition("#")[2] for row in failures] == ["2", "3", "4", "5"]
    assert {(row["stage"], row["reason"]) for row in failures} == {("list", "bad_row")}


@pytest.mark.parametrize(
    ("name", "content", "flags", "message"),
    [
        ("list.csv", b"url,text2\nx,y\n", [], "uri"),
        ("list.csv", b"uri,ownr\nx,y\n", ["--carry=owner"], "ownr"),
        ("list.parquet", b"not parquet", [], "list.parquet"),
        ("list.txt", b"a.jpg", ["--carry=owner"], "owner"),
        ("list.csv", b"uri\nx\n", ["--carry=label"], "column label of their own"),
        ("list.csv", b"uri,Label\nx,y\n", ["--carry=Label"], "column label of their own"),
        ("list.csv", b"uri,a,A\nx,y,z\n", ["--carry=a,A"], "two columns would be a"),
    ],
)
def test_a_manifest_that_cannot_be_meant(job: Job, shelf, name, content, flags, message):
    (shelf / name).write_bytes(content)
    done = job(*flags, input=shelf / name)
    assert done.status == 2
    assert message in done.err.splitlines()[-1]
    assert len([line for line in done.err.splitlines() if "error:" in line]) == 1


def test_a_manifest_of_web_addresses(job: Job, shelf):
    (shelf / "é 猫.jpg").write_bytes(encoded(picture(seed=6)))
    (shelf / "words.txt").write_text("a dog in the grass")
    with faulty_server(folder=shelf) as web:
        uris = [
            f"{web.url}/0.jpg",
            f"{web.url}/%C3%A9%20%E7%8C%AB.jpg?size=large",
            f"{web.url}/words.txt",
            f"{web.url}/gone.jpg",
            f"{web.url}/_faulty/status/403",
            "http://127.0.0.1:9/nobody.jpg",
            "http://",
        ]
        (shelf / "web.txt").write_text("\n".join(uris))
        done = job(input=shelf / "web.txt", read_deadline=5)
    assert done.status == 0, done.err
    assert [row["uri"] for row in done.table("embeddings")] == sorted(uris[:3])
    assert all(row["version"] for row in done.table("embeddings"))  # the server's ETag
    assert {(row["uri"], row["reason"], row["retryable"]) for row in done.table("failures")} == {
        (uris[3], "not_found", False),
        (uris[4], "permission_denied", True),
        (uris[5], "unavailable", True),
        (uris[6], "unsupported_uri", False),
    }


def test_a_web_object_over_the_limit_is_not_fetched(job: Job, shelf):
    (shelf / "big.jpg").write_bytes(encoded(picture()) + bytes(5_000_000))
    with faulty_server(folder=shelf) as web:
        (shelf / "web.txt").write_text(f"{web.url}/big.jpg\n{web.url}/0.jpg")
        done = job(input=shelf / "web.txt", max_bytes=100_000)
        requests = web.counts()["requests"]
    (failure,) = done.table("failures")
    assert failure["reason"] == "too_many_bytes"
    assert "5001313 bytes" in failure["message"]
    assert requests == 2  # Refused by what the answer's head said, and not asked again.


# Tars.


def tar(path: Path, members: dict[str, bytes], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def samples(count: int) -> dict[str, bytes]:
    members = {}
    for number in range(count):
        members[f"shard/{number:04d}.jpg"] = encoded(picture(seed=number))
        if number % 2:
            members[f"shard/{number:04d}.txt"] = f"picture number {number}".encode()
        members[f"shard/{number:04d}.json"] = json.dumps({"owner": f"o{number}"}).encode()
        members[f"shard/{number:04d}.cls"] = b"7"
    return members


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_tars_of_the_webdataset_convention(job: Job, tmp_path, mode):
    name = "set.tar" if mode == "w" else "set.tar.gz"
    path = tar(tmp_path / name, samples(11), mode)
    done = job("--carry=owner", input=path, shard_size=4, batch_size=3)
    assert done.status == 0, done.err
    rows = done.table("embeddings")
    assert [row["uri"] for row in rows] == [f"{path}#shard/{n:04d}.jpg" for n in range(11)]
    assert [row["id"] for row in rows] == [f"shard/{n:04d}" for n in range(11)]
    assert [row["modality"] for row in rows] == ["pair" if n % 2 else "image" for n in range(11)]
    assert [row["owner"] for row in rows] == [f"o{n}" for n in range(11)]
    assert done.record["counts"] == {
        "listed": 11, "reused": 0, "embedded": 11, "duplicates": 0, "failed": 0,
    }  # fmt: skip
    # Three shards of up to four, three tables; the same again overwrites them.
    files = set(done.output.rglob("*.parquet"))
    assert len(files) == 9
    again = job("--carry=owner", input=path, shard_size=4)
    assert set(again.output.rglob("*.parquet")) == files
    pictures = job(input=write_pictures(tmp_path / "same", 1), output=tmp_path / "other")
    assert vectors(done)[f"{path}#shard/0000.jpg"] == pytest.approx(
        next(iter(vectors(pictures).values())), abs=1e-5
    )


def test_many_tars_by_a_glob_and_an_empty_one(job: Job, tmp_path):
    for number in range(3):
        tar(tmp_path / f"{number}.tar", {f"{number}.jpg": encoded(picture(seed=number))})
    tar(tmp_path / "3.tar", {})
    # No batch is larger than its shard can be.
    done = job(input=tmp_path / "*.tar", batch_size=10_000_000)
    assert done.status == 0, done.err
    assert [row["id"] for row in done.table("embeddings")] == ["0", "1", "2"]
    assert done.record["counts"]["listed"] == 3


def test_a_truncated_tar_gives_what_is_readable_and_says_where_it_broke(job: Job, tmp_path):
    path = tar(tmp_path / "cut.tar", samples(10))
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    done = job(input=path)
    assert done.status == 0, done.err
    (failure,) = done.table("failures")
    assert (failure["uri"], failure["reason"]) == (str(path), "corrupt_archive")
    assert "byte" in failure["message"]
    embedded = [row["uri"] for row in done.table("embeddings")]
    assert embedded == [f"{path}#shard/{n:04d}.jpg" for n in range(len(embedded))]
    assert 3 <= len(embedded) <= 6
    assert done.record["counts"]["listed"] == len(embedded) + 1


def test_names_in_tars_are_only_names(job: Job, tmp_path):
    picture_bytes = encoded(picture())
    evil = ["../up.jpg", "/root.jpg", "a/../../b.jpg", "C:\\x.jpg"]
    path = tar(tmp_path / "evil.tar", dict.fromkeys(evil, picture_bytes))
    before = {file for file in tmp_path.rglob("*") if file.suffix == ".jpg"}
    done = job(input=path)
    assert {row["uri"] for row in done.table("embeddings")} == {f"{path}#{name}" for name in evil}
    assert {file for file in tmp_path.rglob("*") if file.suffix == ".jpg"} == before
    assert not Path("/root.jpg").exists()


def test_a_tar_is_read_once_front_to_back_from_a_store(job: Job, tmp_path, monkeypatch):
    monkeypatch.setattr("transforms.fetching.BLOCK_BYTES", 10_000)
    bucket = tmp_path / "store" / "archive"
    bucket.mkdir(parents=True)
    path = tar(bucket / "set.tar", samples(30))
    monkeypatch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    with faulty_server(folder=tmp_path / "store", faults=0.3, kinds=["503", "cut"]) as store:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", store.url)
        fsspec.get_filesystem_class("gs").clear_instance_cache()
        done = job(input="gs://archive/set.tar", read_deadline=20)
        counts = store.counts()
    assert done.status == 0, done.err
    assert [row["message"] for row in done.table("failures")] == []
    assert done.record["counts"] == {
        "listed": 30, "reused": 0, "embedded": 30, "duplicates": 0, "failed": 0,
    }  # fmt: skip
    assert sum(counts["faults"].values()) > 0
    blocks = -(-path.stat().st_size // 10_000)
    assert counts["objects"] == blocks + sum(counts["faults"].values())


# Texts and pairs.


def test_texts_of_any_encoding(job: Job, tmp_path):
    shelf = tmp_path / "texts"
    shelf.mkdir()
    sentences = {
        "utf8.txt": ("Ein Hund läuft über die grüne Wiese und bellt die Kühe an.", "utf-8"),
        "bom.txt": ("Ein Hund läuft über die grüne Wiese und bellt die Kühe an.", "utf-8-sig"),
        "utf16.md": ("Ein Hund läuft über die grüne Wiese und bellt die Kühe an.", "utf-16"),
        "latin.txt": ("Ein Hund läuft über die grüne Wiese und bellt die Kühe an.", "cp1252"),
    }
    for name, (text, encoding) in sentences.items():
        (shelf / name).write_bytes(text.encode(encoding))
    (shelf / "empty.txt").write_bytes(b"")
    (shelf / "long.md").write_text("a dog in the grass " * 100)
    (shelf / "noise.txt").write_bytes(bytes(range(256)) * 4)
    done = job(input=shelf, extensions="txt,md")
    assert done.status == 0, done.err
    rows = {Path(row["uri"]).name: row for row in done.table("embeddings")}
    assert set(rows) == {*sentences, "long.md"}
    assert {row["modality"] for row in rows.values()} == {"text"}
    assert rows["utf8.txt"]["text_windows"] == 2
    # 500 words in a context of 16, two of which are the model's own: 36 windows, if all are full.
    assert 36 <= rows["long.md"]["text_windows"] <= 38
    assert rows["utf8.txt"]["width"] is None
    same = [rows[name]["embedding"] for name in sentences]
    assert np.ptp(np.array(same), axis=0).max() < 1e-6
    assert {Path(row["uri"]).name: row["reason"] for row in done.table("failures")} == {
        "empty.txt": "empty", "noise.txt": "not_text",
    }  # fmt: skip


def test_pairs_are_weighed_as_asked(job: Job, shelf, tmp_path):
    (shelf / "list.csv").write_text(
        "uri,text,id\n0.jpg,a brown dog,pair\n0.jpg,,image\n,a brown dog,text\n"
    )
    for weight in (0.0, 0.3, 1.0):
        done = job(input=shelf / "list.csv", text_weight=weight, output=tmp_path / f"w{weight}")
        found = {row["modality"]: np.array(row["embedding"]) for row in done.table("embeddings")}
        expected = (1 - weight) * found["image"] + weight * found["text"]
        assert found["pair"] == pytest.approx(expected / np.linalg.norm(expected), abs=1e-5)


def test_a_pair_with_one_half_missing_uses_the_other(job: Job, shelf):
    (shelf / "broken.jpg").write_bytes(b"<html>")
    (shelf / "list.csv").write_text(
        "uri,text,id\ngone.jpg,a dog,a\nbroken.jpg,a cat,b\n0.jpg,,c\nbroken.jpg,,d\n"
        "0.jpg,a tree,e\n"
    )
    done = job(input=shelf / "list.csv")
    assert [(row["id"], row["modality"], row["unused"]) for row in sorted(
        done.table("embeddings"), key=lambda row: row["id"]
    )] == [
        ("a", "text", "image: not_found"),
        ("b", "text", "image: not_an_image"),
        ("c", "image", None),
        ("e", "pair", None),
    ]  # fmt: skip
    assert [(row["id"], row["reason"]) for row in done.table("failures")] == [("d", "not_an_image")]


# Stores.


def test_options_for_a_store_come_from_the_command_line(job: Job, shelf, monkeypatch):
    for name in ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    with faulty_server(folder=shelf.parent) as store:
        options = {"s3": {"endpoint_url": store.url, "key": "k", "secret": "topsecret",
                          "client_kwargs": {"region_name": "us-east-1"}}}  # fmt: skip
        done = job(f"--storage_options={json.dumps(options)}", input="s3://shelf")
        assert done.status == 0, done.err
        assert done.record["counts"]["embedded"] == 3
        assert "topsecret" not in json.dumps(done.record)
    # And they are forgotten by the next job of this process.
    refused = job(input="s3://shelf")
    assert refused.status == 2


@pytest.mark.parametrize(
    ("value", "message"),
    [("{", "is not JSON"), ("[]", "is not a map"), ('{"s3": 1}', "is not a map")],
)
def test_storage_options_that_cannot_be_meant(job: Job, shelf, value, message):
    done = job(f"--storage_options={value}", input=shelf)
    assert (done.status, done.err.count("\n")) == (2, 1)
    assert message in done.err
