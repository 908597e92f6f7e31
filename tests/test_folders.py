"""Listings of this machine's folders, and what is only found there."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import fsspec
import pytest
from listings import names

from transforms.browsing import files_matching, files_under
from transforms.storage import version_of


def test_local_links_pipes_and_what_goes_away(tmp_path):
    local = fsspec.filesystem("file")
    shelf, farm = tmp_path / "shelf", tmp_path / "farm"
    (shelf / "box").mkdir(parents=True)
    farm.mkdir()
    (shelf / "b.jpg").write_bytes(b"12345")
    (shelf / "box" / "c.jpg").write_bytes(b"1")
    (farm / "link.jpg").symlink_to(shelf / "b.jpg")
    (farm / "broken.jpg").symlink_to(shelf / "gone.jpg")
    (farm / "loop.jpg").symlink_to(farm / "loop.jpg")
    (farm / "folder.jpg").symlink_to(shelf)
    (farm / "loop").symlink_to(farm)
    os.mkfifo(farm / "pipe.jpg")
    expected = ["broken.jpg", "link.jpg", "loop.jpg"]
    for found in (
        files_under(local, str(farm)),
        files_matching(local, f"{farm}/*.jpg"),
        files_matching(local, f"{farm}/**"),
    ):
        assert names(found, str(farm)) == expected
    # Links to folders are not entered, but the input itself, or the start of a glob, may be one.
    assert list(files_matching(local, f"{farm}/*/*.jpg")) == []
    assert list(files_matching(local, f"{tmp_path}/f*/folder.jpg/*.jpg")) == []
    assert names(files_under(local, f"{farm}/folder.jpg"), str(farm)) == [
        "folder.jpg/b.jpg", "folder.jpg/box/c.jpg",
    ]  # fmt: skip
    assert names(files_matching(local, f"{farm}/folder.jpg/*/*"), str(farm)) == [
        "folder.jpg/box/c.jpg"
    ]
    broken, link, _ = files_under(local, str(farm))
    target = next(files_under(local, str(shelf)))
    assert link[1:] == target[1:]
    assert broken.size == 0
    walking = files_under(local, str(shelf))
    assert next(walking).name.endswith("b.jpg")
    (shelf / "box" / "c.jpg").unlink()
    (shelf / "box").rmdir()
    assert list(walking) == []


def test_a_local_version_is_what_fsspec_tells(tmp_path):
    local = fsspec.filesystem("file")
    for name, times in (("a.jpg", (1, 1)), ("b.jpg", (0, 0)), ("c.jpg", (1.25, 2_000_000_000.5))):
        (tmp_path / name).write_bytes(b"123")
        os.utime(tmp_path / name, times)
    versions = [entry.version for entry in files_under(local, str(tmp_path))]
    infos = sorted(local.ls(str(tmp_path), detail=True), key=lambda info: info["name"])
    assert versions == [version_of(info) for info in infos]
    assert versions[0] == "1.0-3"


def test_local_names_that_are_not_utf8(tmp_path):
    local = fsspec.filesystem("file")
    name = os.fsdecode(b"caf\xe9.jpg")
    (tmp_path / name).write_bytes(b"x")
    (tmp_path / "café.jpg").write_bytes(b"x")
    expected = sorted([name, "café.jpg"])
    assert names(files_under(local, str(tmp_path)), str(tmp_path)) == expected
    assert names(files_matching(local, f"{tmp_path}/*"), str(tmp_path)) == expected


def test_a_local_folder_that_cannot_be_read_is_an_error(tmp_path, monkeypatch):
    local = fsspec.filesystem("file")
    (tmp_path / "closed").mkdir()
    (tmp_path / "a.jpg").write_bytes(b"x")
    real = os.scandir

    def scandir(path: str) -> Any:
        # Tests may run as a user whom no folder is closed to.
        if "closed" in path:
            raise PermissionError(13, "Permission denied", path)
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    for found in (
        files_under(local, str(tmp_path)),
        files_matching(local, f"{tmp_path}/**"),
        files_matching(local, f"{tmp_path}/*/*.jpg"),
    ):
        with pytest.raises(PermissionError):
            list(found)
    assert names(files_matching(local, f"{tmp_path}/*.jpg"), str(tmp_path)) == ["a.jpg"]


def test_folders_deeper_than_the_stack(tmp_path):
    local = fsspec.filesystem("file")
    (tmp_path / "top").mkdir()
    here = os.open(tmp_path / "top", os.O_RDONLY)
    depth = 1500
    try:
        for _ in range(depth):
            os.mkdir("d", dir_fd=here)
            inner = os.open("d", os.O_RDONLY, dir_fd=here)
            os.close(here)
            here = inner
        os.close(os.open("x.jpg", os.O_CREAT | os.O_WRONLY, dir_fd=here))
        assert depth > sys.getrecursionlimit()
        for found in (files_under(local, str(tmp_path)), files_matching(local, f"{tmp_path}/**")):
            assert [entry.name.count("/d") for entry in found] == [depth]
    finally:
        os.close(here)
        # Here, and not by pytest: shutil's removal is a recursion.
        subprocess.run(["rm", "-rf", tmp_path / "top"], check=True)


def test_no_more_than_a_local_folder_is_read_ahead(tmp_path):
    """The first file comes before the folders after it are looked at."""
    local = fsspec.filesystem("file")
    for folder in "abc":
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "1.jpg").write_bytes(b"x")
    walking = files_under(local, str(tmp_path))
    next(walking)
    (tmp_path / "c" / "2.jpg").write_bytes(b"x")
    assert len(list(walking)) == 3
