"""Tars in the WebDataset convention to samples; the names in a tar are never files here."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, BinaryIO, NamedTuple

from transforms import names
from transforms.records import MediaError, MediaRef, Reason
from transforms.tabletext import carried_text, escaped, printable
from transforms.tarstream import BrokenTarError, Member, TarStream, members

TEXTS = frozenset({*names.TEXTS, ".caption"})
"""What a sample's text is called; `.json` is its metadata, and may hold a caption instead."""

_CAPTION_KEYS = ("caption", "text")
_MEMBERS_AT_ONCE = 100
"""How many members of one key wait for each other: `frame.0001.jpg` has thousands of them."""


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
    stream = TarStream(file)
    archive = _Archive(tar_uri, version, carry)
    sample = _Sample("")
    try:
        for member in members(stream):
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
    except BrokenTarError as error:
        # A sample that lacks a part is not what its maker meant; it is told of by the tar's row.
        if stream.inside is None or _split(stream.inside)[0] != sample.key:
            yield from archive.items(sample)
        yield archive.broken(f"{stream.where()}: {error}")
    else:
        yield from archive.items(sample)


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
            uri=f"{self.uri}#{printable(part.name)}",
            version=self.version,
            size=part.size,
            id=printable(sample.key),
            text=text,
            carried=self._carried(document.fields if document else {}),
            fetched=fetched,
        )

    def _carried(self, fields: Mapping[str, Any]) -> tuple[str | None, ...]:
        values = (carried_text(fields.get(name)) for name in self.carry)
        return tuple(value if value is None else escaped(value) for value in values)


def _caption(document: _Part | None) -> str | None:
    """A caption that is in a `.json`, None where it is blank or no text."""
    for key in _CAPTION_KEYS:
        value = document.fields.get(key) if document else None
        if isinstance(value, str) and value.strip():
            return escaped(value)
    return None


def _part(stream: TarStream, member: Member, max_bytes: int) -> _Part:
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
