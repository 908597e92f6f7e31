"""Local files, read whole in a few calls."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from transforms.storereads import LargerError, read_local


@pytest.mark.parametrize("size", [0, 1, 5_000_000])
def test_a_file_is_read_whole(size: int, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(os.urandom(size))
    assert read_local(str(file), size) == file.read_bytes()


def test_a_file_that_has_more_than_its_size_tells_is_read_to_its_end() -> None:
    told = Path("/proc/self/mountinfo")
    assert told.stat().st_size == 0
    assert read_local(str(told), 0) == told.read_bytes() != b""


def test_a_larger_file_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(101))
    with pytest.raises(LargerError, match="101 bytes"):
        read_local(str(tmp_path / "file"), 100)


def test_what_is_no_file_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe", tmp_path / "missing"):
        opened = set(os.listdir("/proc/self/fd"))
        with pytest.raises(OSError, match=str(path)):
            read_local(str(path), 100)
        assert set(os.listdir("/proc/self/fd")) == opened
