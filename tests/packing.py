"""Tars by hand, and what is read of them: whole ones, and headers that no program writes."""

from __future__ import annotations

import io
import tarfile

from transforms.tars import TarSample, read_samples

PICTURES = frozenset({".jpg", ".png"})
TAR = "gs://bucket/a.tar"
END = b"\0" * 1024

Members = list[tuple[str, bytes]]


def pack(members: Members, kind: int = tarfile.PAX_FORMAT, end: bytes = END) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=kind) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        size = tar.offset
    return buffer.getvalue()[:size] + end


class Stream:
    """What a store gives: it can be read, and nothing else."""

    def __init__(self, content: bytes) -> None:
        self._file = io.BytesIO(content)

    def read(self, size: int = -1) -> bytes:
        return self._file.read(min(size, 3000))


def read(content: bytes, carry: tuple[str, ...] = (), max_bytes: int = 10**6) -> list[TarSample]:
    return list(read_samples(Stream(content), TAR, "v1", carry, max_bytes, PICTURES))


def names(samples: list[TarSample]) -> list[str]:
    return [sample.ref.uri.removeprefix(f"{TAR}#") for sample in samples]


def header(kind: bytes, size: int, name: str = "h", link: str = "") -> bytes:
    info = tarfile.TarInfo(name)
    info.type, info.size, info.linkname = kind, size, link
    return info.tobuf(tarfile.GNU_FORMAT)
