"""The whole job where inputs overlap, are refused, or are only selected from in part."""

from __future__ import annotations

import csv
import io
import tarfile
from pathlib import Path

import fsspec
import pytest
from conftest import Job, encoded, picture, write_pictures
from faulty import faulty_server
from fsspec.implementations.memory import MemoryFileSystem


@pytest.fixture
def pics(tmp_path) -> Path:
    return write_pictures(tmp_path / "pics", 3)


def written(done) -> int:
    """Rows, which must be as many as are accounted for."""
    assert done.status == 0, done.err
    rows = len(done.table("embeddings"))
    counts = done.record["counts"]
    assert counts["listed"] == counts["embedded"] + counts["duplicates"] == rows
    return rows


def rows_of(path: Path, rows: list[dict]) -> Path:
    with path.open("w") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return path


@pytest.mark.parametrize("with_ids", [True, False])
def test_a_folder_and_a_manifest_of_the_same_lose_nothing(job: Job, pics, tmp_path, with_ids):
    names = sorted(str(path) for path in pics.iterdir())
    rows = [{"uri": name, **({"id": str(n)} if with_ids else {})} for n, name in enumerate(names)]
    same = rows_of(tmp_path / "same.csv", rows)
    done = job(f"--input={pics}", f"--input={same}")
    # Without ids of their own the rows are the same items as the folder's.
    assert written(done) == (6 if with_ids else 3)
    assert done.record["counts"]["embedded"] == 3


def test_rows_of_one_object_with_other_ids_are_other_items(job: Job, pics, tmp_path):
    rows = [{"uri": pics / "00000.jpg", "id": name} for name in "abc"]
    done = job(input=rows_of(tmp_path / "m.csv", rows), shard_size=1)
    assert written(done) == 3
    assert sorted(row["id"] for row in done.table("embeddings")) == ["a", "b", "c"]


def test_rows_that_differ_only_in_what_they_carry_are_one_item(job: Job, pics, tmp_path):
    rows = [{"uri": pics / "00000.jpg", "owner": name} for name in ("me", "you", "me")]
    done = job("--carry=owner", input=rows_of(tmp_path / "m.csv", rows), shard_size=1)
    assert written(done) == 1
    assert [row["owner"] for row in done.table("embeddings")] == ["me"]


def make_tar(path: Path) -> Path:
    with tarfile.open(path, "w") as tar:
        for number in range(2):
            data = encoded(picture(seed=number))
            member = tarfile.TarInfo(f"{number}.jpg")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def test_a_tar_named_twice_is_read_once(job: Job, tmp_path):
    tar = make_tar(tmp_path / "a.tar")
    assert written(job(f"--input={tar}", f"--input={tmp_path}/*.tar")) == 2


def test_a_text_of_many_lines_is_one_row(job: Job, pics, tmp_path):
    text = "\n".join(["a line of thirty-two characters."] * 6_000)
    rows = [{"uri": "", "text": text}, {"uri": pics / "00000.jpg", "text": ""}]
    done = job(input=rows_of(tmp_path / "m.csv", rows))
    assert done.status == 0, done.err
    assert done.record["counts"] == {
        "listed": 2, "reused": 0, "embedded": 1, "duplicates": 0, "failed": 1,
    }  # fmt: skip
    assert [row["reason"] for row in done.table("failures")] == ["too_much_text"]


@pytest.mark.parametrize(
    ("named", "flag"),
    [("x.jpg", "--include=*.png"), ("m.csv", "--include=*.png"), ("m.csv", "--extensions=png"),
     ("*.csv", "--exclude=m*"), ("a.tar", "--exclude=*.tar"), ("*.tar", "--include=*.png")],
)  # fmt: skip
def test_what_is_named_is_taken_whatever_the_selection(job: Job, tmp_path, named, flag):
    (tmp_path / "x.jpg").write_bytes(encoded(picture()))
    rows_of(tmp_path / "m.csv", [{"uri": "x.jpg"}])
    make_tar(tmp_path / "a.tar")
    assert written(job(flag, input=tmp_path / named)) == (2 if "tar" in named else 1)


def refused(done, said: str) -> None:
    assert done.status == 2, done.err
    assert done.err.count("\n") == 1
    assert done.err.startswith("beamtag tag: error: ")
    assert said in done.err
    assert not Path(done.output).exists()


@pytest.mark.parametrize("glob", ["pics/**.jpg", "a**b/*.csv", "a**b/*.tar", "pics/x**/*.jpg"])
def test_a_glob_that_is_none(job: Job, pics, tmp_path, glob):
    refused(job(input=tmp_path / glob), f"cannot look at --input={tmp_path / glob}: ")


def test_a_web_server_that_does_not_say(job: Job, pics):
    with faulty_server(folder=pics) as web:
        for status in (416, 403, 500):
            url = f"{web.url}/_faulty/status/{status}"
            refused(job(input=url), f"cannot look at --input={url}: ClientResponseError: {status}")
        refused(job(input=f"{web.url}/_faulty/status/404"), "does not exist")
        refused(job(input=f"{web.url}/_faulty/status/500?list.csv"), "cannot look at")
        refused(job(input=f"{web.url}/missing.jpg"), "does not exist")
        assert written(job(input=f"{web.url}/00000.jpg")) == 1
    url = f"{web.url}/00000.jpg"
    refused(job(input=url, output=pics / "none"), f"cannot look at --input={url}: ClientConnector")


def test_s3_without_credentials(job: Job, tmp_path, monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    for url in ("s3://bucket", "s3://bucket/a.jpg", "s3://bucket/*.jpg", "s3://bucket/m.csv"):
        refused(job(input=url), f"cannot look at --input={url}: NoCredentialsError")
    fsspec.get_filesystem_class("s3").clear_instance_cache()


class LockedStore(MemoryFileSystem):
    """A store that shows what is there, and does not list it."""

    protocol = "locked"

    @classmethod
    def _strip_protocol(cls, path):
        return f"/{path.removeprefix('locked://').strip('/')}"

    def ls(self, path, detail=True, **kwargs):
        raise RuntimeError("not for\nyou")


def test_manifests_that_cannot_be_listed(job: Job):
    fsspec.register_implementation("locked", LockedStore, clobber=True)
    fsspec.filesystem("memory").pipe_file("/locked/m.csv", b"uri\nx\n")
    done = job(input="locked:///locked/*.csv")
    refused(done, "cannot look at --input=locked:///locked/*.csv: RuntimeError: not for")


def test_an_empty_folder_is_no_mistake(job: Job, tmp_path):
    (tmp_path / "none").mkdir()
    done = job(input=tmp_path / "none")
    assert done.status == 0, done.err
    assert done.record["counts"]["listed"] == 0


def test_a_password_is_not_in_the_record(job: Job, pics):
    with faulty_server(folder=pics) as web:
        url = f"{web.url.replace('://', '://me:secret@')}/00000.jpg"
        done = job(input=url)
    assert done.status == 0, done.err
    assert done.record["inputs"] == [url.replace("secret", "***")]
