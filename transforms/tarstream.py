"""A tar as a stream, read once and front to back: its members, or where and why it breaks off.

`tarfile` parses each header, but not the archive: it takes a cut or damaged archive for one that
ends there, and reads extended headers of any size.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator, Mapping
from typing import BinaryIO, NamedTuple

from transforms.beamfiles import BROKEN_GZIP, gunzipped
from transforms.tabletext import printable

_HEADER_BYTES = 1024 * 1024
"""What an extended header may take: a name of any sane length, and much more."""
_SKIP_BYTES = 1024 * 1024
_BLOCK = tarfile.BLOCKSIZE
_EXTENDED = (
    tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
)  # fmt: skip
_WITHOUT_DATA = (tarfile.DIRTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE)
_LINKS = (tarfile.LNKTYPE, tarfile.SYMTYPE)
_PATH, _SIZE, _SPARSE, _SPARSE_NAME = b"path", b"size", b"GNU.sparse.", b"GNU.sparse.name"


class BrokenTarError(Exception):
    """The tar breaks off here, or what is here is no tar."""


class TarStream:
    """A tar's bytes, unpacked: where we are, and in which member's data (None between members)."""

    def __init__(self, file: BinaryIO) -> None:
        self._stream = gunzipped(file)
        self.position = 0
        self.begun = False
        self.members = 0
        self.inside: str | None = None

    def read(self, size: int) -> bytes:
        """So many bytes, all of them."""
        data = self.read_up_to(size)
        if len(data) < size:
            raise BrokenTarError("the file ends here")
        return data

    def read_up_to(self, size: int) -> bytes:
        """So many bytes, fewer only at the end."""
        parts = []
        missing = size
        while missing and (part := self._read_some(missing)):
            parts.append(part)
            missing -= len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def skip(self, size: int) -> None:
        """Go on by so many bytes."""
        while size:
            part = self._read_some(min(size, _SKIP_BYTES))
            if not part:
                raise BrokenTarError("the file ends here")
            size -= len(part)

    def where(self) -> str:
        """What there is to say of a tar that is broken here."""
        if not self.begun:
            return "is not a tar"
        inside = "" if self.inside is None else f", in member {printable(self.inside)!r}"
        return f"breaks off at byte {self.position}, after {self.members} members{inside}"

    def _read_some(self, size: int) -> bytes:
        try:
            # Not `read`, which forgets the bytes before those that cannot be unpacked.
            part = self._stream.read1(size)
        except BROKEN_GZIP as error:
            raise BrokenTarError(f"its gzip is cut or damaged ({error})") from error
        self.position += len(part)
        return part


class Member(NamedTuple):
    """A member that could be a file: its name, its bytes, and why those are not to be had here."""

    name: str
    size: int
    why_unread: str | None


def members(stream: TarStream) -> Iterator[Member]:
    """The members that may matter, in order; the stream is at a member's data when it comes.

    Whoever takes it reads as much of them as it likes. Tars that were joined are all read. Raises
    BrokenTarError, and what reading the file raises.
    """
    ended = False
    extended: dict[bytes, bytes] = {}
    while block := stream.read_up_to(_BLOCK):
        ended = not block.strip(b"\0")
        if ended:
            stream.begun = True
            continue
        header = _header(stream, block)
        if header.type in _EXTENDED:
            extended |= _extended(stream, header)
            continue
        why_unread = None
        if header.type == tarfile.GNUTYPE_SPARSE or _SPARSE in extended:
            why_unread = "is a sparse file, which is not read out of a tar"
        if header.type == tarfile.GNUTYPE_SPARSE:
            _skip_sparse_map(stream, block)
        if header.type in _LINKS:
            target = printable(header.linkname)
            why_unread = f"is a link to {target!r}, and has no bytes of its own"
        name, size = _name_and_size(header, extended)
        extended = {}
        if header.type in _WITHOUT_DATA:
            continue
        end = stream.position + size
        stream.inside = name
        yield Member(name, size, why_unread)
        stream.skip(end - stream.position)
        stream.inside = None
        stream.members += 1
        stream.skip(-size % _BLOCK)
    if not ended:
        raise BrokenTarError("the file ends here, without a tar's end mark")


def _header(stream: TarStream, block: bytes) -> tarfile.TarInfo:
    if len(block) < _BLOCK:
        raise BrokenTarError("the file ends here, in a header")
    try:
        header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.HeaderError as error:
        stream.position -= _BLOCK
        raise BrokenTarError(f"no header of a member, but {block[:12]!r}...") from error
    if header.size < 0:
        raise BrokenTarError(f"a header that tells of {header.size} bytes")
    stream.begun = True
    return header


def _extended(stream: TarStream, header: tarfile.TarInfo) -> dict[bytes, bytes]:
    """What a header says of the member after it, as pax fields; only those that matter here."""
    if header.size > _HEADER_BYTES:
        raise BrokenTarError(f"an extended header of {header.size} bytes")
    payload = stream.read(header.size)
    stream.skip(-header.size % _BLOCK)
    if header.type == tarfile.GNUTYPE_LONGNAME:
        return {_PATH: payload.partition(b"\0")[0]}
    if header.type in (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE):
        return _pax_fields(payload)
    return {}


def _pax_fields(payload: bytes) -> dict[bytes, bytes]:
    """The fields of records like `25 path=pictures/a.jpg\\n` (POSIX.1-2017, pax, 4.18)."""
    fields = {}
    start = 0
    while start < len(payload):
        length, space, _ = payload[start : start + 20].partition(b" ")
        begin = start + len(length) + len(space)
        end = start + int(length) if space and length.isdigit() else start
        if end <= begin or payload[end - 1 : end] != b"\n":
            raise BrokenTarError("an extended header that cannot be understood")
        keyword, _, value = payload[begin : end - 1].partition(b"=")
        if keyword in (_PATH, _SIZE, _SPARSE_NAME):
            fields[keyword] = value
        if keyword.startswith(_SPARSE):
            fields[_SPARSE] = b""
        start = end
    return fields


def _name_and_size(header: tarfile.TarInfo, extended: Mapping[bytes, bytes]) -> tuple[str, int]:
    path = extended.get(_SPARSE_NAME) or extended.get(_PATH)
    name = header.name if path is None else path.decode("utf-8", "surrogateescape")
    if header.type in _LINKS:
        return name, 0
    told = extended.get(_SIZE)
    if told is None:
        return name, header.size
    if not told.isdigit() or len(told) > 20:
        raise BrokenTarError("an extended header that cannot be understood")
    return name, int(told)


def _skip_sparse_map(stream: TarStream, block: bytes) -> None:
    """Old GNU sparse files have further blocks of their map before the data."""
    more = block[482]
    while more:
        more = stream.read(_BLOCK)[504]
