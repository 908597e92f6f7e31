"""Tars in the WebDataset convention, read as a stream, once and front to back, to samples.

`tarfile` parses each header, but not the archive: it takes a cut or damaged archive for one that
ends there, and reads extended headers of any size. Names in a tar are names, never files here.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, BinaryIO, NamedTuple

from transforms.beamfiles import BROKEN_GZIP, gunzipped
from transforms.records import MediaError, MediaRef, Reason

TEXTS = frozenset({".txt", ".md", ".markdown", ".caption"})
"""What a sample's text is called; `.json` is its metadata, and may hold a caption instead."""

_CAPTION_KEYS = ("caption", "text")
_HEADER_BYTES = 1024 * 1024
"""What an extended header may take: a name of any sane length, and much more."""
_MEMBERS_AT_ONCE = 100
"""How many members of one key wait for each other: `frame.0001.jpg` has thousands of them."""
_SKIP_BYTES = 1024 * 1024
_BLOCK = tarfile.BLOCKSIZE
_EXTENDED = (
    tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
)  # fmt: skip
_WITHOUT_DATA = (tarfile.DIRTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE)
_PATH, _SIZE, _SPARSE, _SPARSE_NAME = b"path", b"size", b"GNU.sparse.", b"GNU.sparse.name"


class TarSample(NamedTuple):
    """One item of a tar: a picture with what belongs to it, or a text.

    `data` are the picture's bytes, None where the item is only a text. `caption` is a text as it
    is in the tar, of whatever encoding; one that came from `.json` is `ref.text` instead. With
    `problem` the item cannot be used: the picture, or where there is no picture, all of it.
    """

    ref: MediaRef
    data: bytes | None = None
    caption: bytes | None = None
    problem: MediaError | None = None


def read_samples(
    file: BinaryIO,
    tar_uri: str,
    version: str,
    carry: tuple[str, ...],
    max_bytes: int,
    pictures: frozenset[str],
) -> Iterator[TarSample]:
    """The samples of a tar, gzipped or not, in its order; `file` need not be seekable.

    Consecutive members of one key are one sample. An item of it is each member with an extension
    of `pictures` (lower case, with the dot), or without such, each text. Members over `max_bytes`
    are not read. Of a tar that breaks off, whole samples come, then one whose reference is the
    tar's. Raises what reading `file` raises.
    """
    stream = _Stream(file)
    archive = _Archive(tar_uri, version, carry)
    sample = _Sample("")
    try:
        for member in _members(stream):
            key, extension = _split(member.name)
            if not key:
                continue
            if key != sample.key or sample.is_full(max_bytes):
                yield from archive.items(sample)
                sample = _Sample(key)
            if extension in pictures:
                sample.add(sample.pictures, _part(stream, member, max_bytes))
            elif extension in TEXTS:
                sample.add(sample.texts, _part(stream, member, max_bytes))
            elif extension == ".json":
                sample.add(sample.documents, _document(_part(stream, member, max_bytes)))
    except _BrokenError as error:
        # A sample that lacks a part is not what its maker meant; it is told of by the tar's row.
        if stream.inside is None or _split(stream.inside)[0] != sample.key:
            yield from archive.items(sample)
        yield archive.broken(_where(stream, error))
    else:
        yield from archive.items(sample)


def carried_text(value: object) -> str | None:
    """A value of a manifest's or sample's metadata as tables carry it: text, or JSON if nested."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return str(value)
    try:
        return json.dumps(value, ensure_ascii=False, default=str)
    except RecursionError:
        # Reading it took a few calls less. The item is not lost for a value like that.
        return "(nested too deeply)"


def _where(stream: _Stream, error: _BrokenError) -> str:
    if not stream.begun:
        return f"is not a tar: {error}"
    inside = "" if stream.inside is None else f", in member {_printable(stream.inside)!r}"
    return f"breaks off at byte {stream.position}, after {stream.members} members{inside}: {error}"


def _split(name: str) -> tuple[str, str]:
    """The key, up to the first dot of the base name, and the extension, from the last.

    Both are empty for what can be no sample: hidden files, and names without a dot. The extension
    is the last so that `IMG 10.30.15.jpg` is a picture.
    """
    base = name.rpartition("/")[2]
    stem, dot, rest = base.partition(".")
    if not stem or not dot:
        return "", ""
    return name[: len(name) - len(rest) - 1], f".{rest.rpartition('.')[2].lower()}"


class _Part(NamedTuple):
    """A member that matters: its bytes or, of a `.json`, its fields; or why they are not here."""

    name: str
    size: int
    data: bytes = b""
    fields: Mapping[str, Any] = {}
    problem: MediaError | None = None

    @property
    def stem(self) -> str:
        return self.name.rpartition(".")[0]


class _Sample:
    """The members of one key, as far as they were read."""

    def __init__(self, key: str) -> None:
        self.key = key
        self.pictures: list[_Part] = []
        self.texts: list[_Part] = []
        self.documents: list[_Part] = []
        self.unusable: list[_Part] = []
        self._members = self._bytes = 0

    def add(self, kind: list[_Part], part: _Part) -> None:
        # A picture that cannot be used may still have a text that can.
        (kind if part.problem is None or kind is self.pictures else self.unusable).append(part)
        self._members += 1
        self._bytes += part.size if part.problem is None else 0

    def is_full(self, max_bytes: int) -> bool:
        """Whether so much of one key waits in memory that it is given out before its end."""
        return self._members >= _MEMBERS_AT_ONCE or self._bytes > 2 * max_bytes

    def belonging(self, part: _Part, candidates: Sequence[_Part]) -> _Part | None:
        """The one of the same name but for its extension, or the one of the whole sample."""
        by_stem = {candidate.stem: candidate for candidate in reversed(candidates)}
        only = candidates[0] if candidates and len(self.pictures) <= 1 else None
        return by_stem.get(part.stem) or by_stem.get(self.key) or only


class _Archive(NamedTuple):
    """What all items of a tar have in common."""

    uri: str
    version: str
    carry: tuple[str, ...]

    def items(self, sample: _Sample) -> Iterator[TarSample]:
        """A sample's items, then its parts that cannot be used."""
        texts, documents = sample.texts, sample.documents
        for picture in sample.pictures:
            document = sample.belonging(picture, documents)
            text = sample.belonging(picture, texts)
            caption = text.data if text and text.data.strip() else None
            said = _caption(document) if caption is None else None
            ref = self._ref(sample, picture, document, said)
            data = None if picture.problem else picture.data
            yield TarSample(ref, data, caption, picture.problem)
        if not sample.pictures:
            for text in texts:
                ref = self._ref(sample, text, sample.belonging(text, documents), fetched=False)
                yield TarSample(ref, caption=text.data)
            for document in documents if not texts else ():
                if said := _caption(document):
                    yield TarSample(self._ref(sample, document, document, said, fetched=False))
        for part in sample.unusable:
            yield TarSample(self._ref(sample, part, fetched=False), problem=part.problem)

    def broken(self, message: str) -> TarSample:
        """The row of the tar itself."""
        ref = MediaRef(self.uri, self.version, carried=self._carried({}), fetched=False)
        return TarSample(ref, problem=MediaError(Reason.CORRUPT_ARCHIVE, message))

    def _ref(
        self,
        sample: _Sample,
        part: _Part,
        document: _Part | None = None,
        text: str | None = None,
        fetched: bool = True,
    ) -> MediaRef:
        return MediaRef(
            uri=f"{self.uri}#{_printable(part.name)}",
            version=self.version,
            size=part.size,
            id=_printable(sample.key),
            text=text,
            carried=self._carried(document.fields if document else {}),
            fetched=fetched,
        )

    def _carried(self, fields: Mapping[str, Any]) -> tuple[str | None, ...]:
        values = (carried_text(fields.get(name)) for name in self.carry)
        return tuple(value if value is None else _encodable(value) for value in values)


def _caption(document: _Part | None) -> str | None:
    """A caption that is in a `.json`, None where it is blank or no text."""
    for key in _CAPTION_KEYS:
        value = document.fields.get(key) if document else None
        if isinstance(value, str) and value.strip():
            return _encodable(value)
    return None


def _printable(name: str) -> str:
    # As in a listing: tables hold UTF-8, a name of other bytes is shown by its escapes.
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _encodable(text: str) -> str:
    """The text, half characters that JSON can spell shown by their escapes."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _part(stream: _Stream, member: _Member, max_bytes: int) -> _Part:
    """A member's bytes, where it has any and not too many."""
    name, size = member.name, member.size
    if member.why_unread:
        return _Part(name, size, problem=MediaError(Reason.UNSUPPORTED_URI, member.why_unread))
    if size > max_bytes:
        message = f"{size} bytes, more than the {max_bytes} allowed"
        return _Part(name, size, problem=MediaError(Reason.TOO_MANY_BYTES, message))
    return _Part(name, size, stream.read(size))


def _document(part: _Part) -> _Part:
    """A `.json` member with its fields; what is well-formed but no object has none."""
    if part.problem is not None:
        return part
    try:
        fields = json.loads(part.data)
    except (ValueError, RecursionError) as error:
        problem = MediaError(Reason.BAD_ROW, f"is not JSON: {error}")
        return part._replace(data=b"", problem=problem)
    return part._replace(data=b"", fields=fields if isinstance(fields, dict) else {})


class _BrokenError(Exception):
    """The tar ends here, or what is here is no tar."""


class _Stream:
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
            raise _BrokenError("the file ends here")
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
                raise _BrokenError("the file ends here")
            size -= len(part)

    def _read_some(self, size: int) -> bytes:
        try:
            # Not `read`, which forgets the bytes before those that cannot be unpacked.
            part = self._stream.read1(size)
        except BROKEN_GZIP as error:
            raise _BrokenError(f"its gzip is cut or damaged ({error})") from error
        self.position += len(part)
        return part


class _Member(NamedTuple):
    """A member that could be a file: its name, its bytes, and why those are not to be had here."""

    name: str
    size: int
    why_unread: str | None


def _members(stream: _Stream) -> Iterator[_Member]:
    """The members that may matter, in order; the stream is at a member's data when it comes.

    Whoever takes it reads as much of them as it likes. Tars that were joined are all read.
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
        if header.type in (tarfile.LNKTYPE, tarfile.SYMTYPE):
            why_unread = (
                f"is a link to {_printable(header.linkname)!r}, and has no bytes of its own"
            )
        name, size = _name_and_size(header, extended)
        extended = {}
        if header.type in _WITHOUT_DATA:
            continue
        end = stream.position + size
        stream.inside = name
        yield _Member(name, size, why_unread)
        stream.skip(end - stream.position)
        stream.inside = None
        stream.members += 1
        stream.skip(-size % _BLOCK)
    if not ended:
        raise _BrokenError("the file ends here, without a tar's end mark")


def _header(stream: _Stream, block: bytes) -> tarfile.TarInfo:
    if len(block) < _BLOCK:
        raise _BrokenError("the file ends here, in a header")
    try:
        header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.HeaderError as error:
        stream.position -= _BLOCK
        raise _BrokenError(f"no header of a member, but {block[:12]!r}...") from error
    if header.size < 0:
        raise _BrokenError(f"a header that tells of {header.size} bytes")
    stream.begun = True
    return header


def _extended(stream: _Stream, header: tarfile.TarInfo) -> dict[bytes, bytes]:
    """What a header says of the member after it, as pax fields; only those that matter here."""
    if header.size > _HEADER_BYTES:
        raise _BrokenError(f"an extended header of {header.size} bytes")
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
            raise _BrokenError("an extended header that cannot be understood")
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
    if header.type in (tarfile.LNKTYPE, tarfile.SYMTYPE):
        return name, 0
    told = extended.get(_SIZE)
    if told is None:
        return name, header.size
    if not told.isdigit() or len(told) > 20:
        raise _BrokenError("an extended header that cannot be understood")
    return name, int(told)


def _skip_sparse_map(stream: _Stream, block: bytes) -> None:
    """Old GNU sparse files have further blocks of their map before the data."""
    more = block[482]
    while more:
        more = stream.read(_BLOCK)[504]
