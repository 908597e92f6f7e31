"""One item, from its reference to what the model sees: its object, its text, or both of them.

Reading is bounded three ways: by calls at a time, by the bytes that are fetched but not decoded
yet, and by what the originals take while they are in decoding.
"""

from __future__ import annotations

import contextlib
import hashlib
import queue
import threading
import time
from collections.abc import Iterator
from concurrent.futures import CancelledError
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from transforms import names, processes
from transforms.decoding import ImageDecoder, looks_like_image
from transforms.fetching import Fetched, Fetcher
from transforms.records import (
    ContentKey,
    DecodedMedia,
    Effort,
    Failure,
    MediaError,
    MediaRef,
    ReadLimits,
    Reason,
    Stage,
)
from transforms.storereads import LargerError
from transforms.tars import TarSample
from transforms.texts import decode_text

BYTES_AT_ONCE = 512 * 1024 * 1024
"""How many bytes of objects may be fetched, or in fetching, and not decoded yet."""

SAMPLE_BYTES_AT_ONCE = 256 * 1024 * 1024
"""The same for samples of tars, which have their bytes before they have their turn.

Room of their own: waiting in line with it, they could keep those before them from theirs.
"""

UNLISTED_BYTES = 8 * 1024 * 1024
"""What an object of a size that no listing told may have, before it waits for its own room."""

DECODED_AT_ONCE = 1024 * 1024 * 1024
"""How many bytes of decoded originals may be in memory at a time."""

Pixels = npt.NDArray[np.uint8]


class Room:
    """Bounds what is in memory at a time, in units of it: only what is large ever waits."""

    def __init__(self, units: int) -> None:
        self._limit = self._free = units
        self._changed = threading.Condition()
        self._waiting = 0
        self._closed = False

    def acquire(self, units: int) -> None:
        """Wait for room; who wants more than all the room waits for all of it.

        Raises CancelledError once the room is closed.
        """
        units = min(units, self._limit)
        with self._changed:
            if self._free < units or self._closed:
                self._waiting += 1
                self._changed.wait_for(lambda: self._free >= units or self._closed)
                self._waiting -= 1
                if self._closed:
                    raise CancelledError("nobody waits for this any more")
            self._free -= units

    def release(self, units: int) -> None:
        """Give back what was acquired."""
        with self._changed:
            self._free += min(units, self._limit)
            if self._waiting:
                self._changed.notify_all()

    def close(self) -> None:
        """Wake whoever waits: there will be no room for them."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    @contextlib.contextmanager
    def take(self, units: int) -> Iterator[None]:
        """Room for as long as the context lasts."""
        self.acquire(units)
        try:
            yield
        finally:
            self.release(units)


class Known(NamedTuple):
    """An item that turned out to be done: embedded or, with a `reason`, failed for good."""

    reason: str | None = None


class Done(Protocol):
    """What the reader asks about what the output holds."""

    def state(self, ref: MediaRef) -> str | bool:
        """Whether a version of an item is done: True, the reason of its failure, or False."""

    def embedded(self, content: ContentKey) -> bool:
        """Whether the same bytes have a vector."""


class Item(NamedTuple):
    """What one item has become: its pixels where it has a picture, and what it cost."""

    outcome: DecodedMedia | Failure | Known
    pixels: Pixels | None
    effort: Effort


class _Half(NamedTuple):
    """A picture or a text that can be used, with the reference of what was read.

    With `embedded` it was not decoded, because it need not be. `sha256` is told where it is known.
    """

    ref: MediaRef
    data: bytes
    pixels: Pixels | None = None
    width: int | None = None
    height: int | None = None
    text: str | None = None
    sha256: str | None = None
    embedded: ContentKey | None = None


class ItemReader:
    """Reads items, in as many threads as call it, on so many cores; `decode` is for pictures."""

    def __init__(
        self,
        decode: ImageDecoder,
        limits: ReadLimits,
        done: Done | None = None,
        cores: int | None = None,
    ) -> None:
        self.decode = decode
        self._done = done
        self.samples_room = Room(SAMPLE_BYTES_AT_ONCE)
        self.fetcher = Fetcher(limits.deadline_s, limits.concurrency)
        self._limits = limits
        self._bytes_room = Room(BYTES_AT_ONCE)
        self._decoding_room = Room(DECODED_AT_ONCE)
        self._slots = threading.Semaphore(limits.concurrency)
        # Of more threads in decoding than there are cores, all wait for each other at the
        # interpreter's lock; one more, so that no core is idle at a handing-over. A queue of turns,
        # because a semaphore of Python's takes longer.
        self._turns: queue.SimpleQueue[int] = queue.SimpleQueue()
        for turn in range((cores or processes.cores()) + 1):
            self._turns.put(turn)

    def abandon(self) -> None:
        """Break off what is being read: nobody waits for it any more."""
        self.fetcher.abandon()
        for room in (self.samples_room, self._bytes_room, self._decoding_room):
            room.close()

    def make_room(self, sample: TarSample) -> None:
        """Wait for room for a sample's bytes; `read` gives it back."""
        self.samples_room.acquire(_held(sample))

    def read(self, source: MediaRef | TarSample) -> Item:
        """Fetch, where the bytes are not here yet, and decode.

        An item of picture and text is usable while one of them is: the other is then named in
        `unused`. The bytes of a tar's sample give their room back here.
        """
        sample = source if isinstance(source, TarSample) else TarSample(source)
        spent = _Spent()
        outcome: DecodedMedia | Failure | Known
        try:
            outcome, pixels = self._read(sample, sample is source, spent)
        except _KnownError as known:
            outcome, pixels = known.known, None
        if sample is source:
            self.samples_room.release(_held(sample))
        return Item(outcome, pixels, spent.effort())

    def _read(
        self, sample: TarSample, of_tar: bool, spent: _Spent
    ) -> tuple[DecodedMedia | Failure, Pixels | None]:
        ref = sample.ref
        # Of a tar's members none was listed.
        if of_tar:
            self._refuse_known(ref)
        alone = sample.caption is None and ref.text is None
        media: _Half | Failure | None = None
        if ref.problem is not None:
            media = Failure(ref, Stage.LIST, Reason.BAD_ROW, ref.problem)
        elif sample.problem is not None:
            media = Failure(ref, Stage.READ, sample.problem.reason, str(sample.problem))
        elif sample.data is not None:
            media = self._decode(ref, sample.data, spent, alone)
        elif ref.fetched:
            media = self._fetch_and_decode(ref, spent, alone)
        return _together(ref, media, self._text(sample))

    def _refuse_known(self, ref: MediaRef) -> None:
        """Break off an item that is done. Raises _KnownError."""
        state = self._done.state(ref) if self._done else False
        if state is not False:
            raise _KnownError(Known(None if state is True else str(state)))

    def _fetch_and_decode(self, ref: MediaRef, spent: _Spent, alone: bool) -> _Half | Failure:
        try:
            with self._fetched(ref, spent) as fetched:
                spent.retries = fetched.retries
                seen = _seen(ref, fetched.version)
                if ref.version_unknown:
                    self._refuse_known(seen)
                return self._decode(seen, fetched.data, spent, alone)
        except MediaError as error:
            spent.retries = error.retries
            # What came of it the last time is there: its failure, or the vector of its text alone.
            if ref.version_unknown:
                self._refuse_known(ref)
            return Failure(ref, Stage.READ, error.reason, str(error))

    @contextlib.contextmanager
    def _fetched(self, ref: MediaRef, spent: _Spent) -> Iterator[Fetched]:
        """The object, and room for its bytes as long as they are in use."""
        most = self._limits.max_bytes
        if ref.size is not None and ref.size > most:
            raise _too_many(ref.size, most)
        allowance = min(UNLISTED_BYTES if ref.size is None else ref.size, most)
        while True:
            asked = time.perf_counter()
            with self._bytes_room.take(allowance):
                try:
                    with self._slots:
                        begun = time.perf_counter()
                        spent.fetch_waiting += begun - asked
                        try:
                            fetched = self.fetcher.fetch(ref.uri, allowance)
                        finally:
                            spent.fetch += time.perf_counter() - begun
                except LargerError as larger:
                    # The listing did not tell, or the object has grown since. It waits for more
                    # room without holding any: holding some, all could wait for each other.
                    if allowance == most or (larger.size or 0) > most:
                        raise _too_many(larger.size, most) from None
                    allowance = larger.size or most
                else:
                    yield fetched
                    return

    def _decode(self, ref: MediaRef, data: bytes, spent: _Spent, alone: bool) -> _Half | Failure:
        started, processor = time.perf_counter(), time.thread_time()
        try:
            # By content first: bytes that begin as a picture are one under any name.
            is_text = _named_text(ref.uri) and not looks_like_image(data)
            digest = hashlib.sha256(data).hexdigest()
            if alone and self._done:
                content = ContentKey("text" if is_text else "image", digest)
                if self._done.embedded(content):
                    return _Half(ref, data, sha256=digest, embedded=content)
            if is_text:
                text = self._bounded(decode_text(data))
                return _Half(ref, data, text=text, sha256=digest)
            turn = self._turns.get()
            try:
                image = self.decode(data, self._decoding_room.take)
            finally:
                self._turns.put(turn)
        except MediaError as error:
            return Failure(ref, Stage.DECODE, error.reason, str(error))
        finally:
            # Many threads share the cores: only the processor's seconds tell what decoding takes.
            spent.decode = time.thread_time() - processor
            spent.decode_waiting = max(0.0, time.perf_counter() - started - spent.decode)
        return _Half(ref, data, image.pixels, image.width, image.height, sha256=digest)

    def _text(self, sample: TarSample) -> _Half | Failure | None:
        """The text that came with the reference, or with the picture in a tar."""
        try:
            if sample.caption is not None:
                return _Half(
                    sample.ref, sample.caption, text=self._bounded(decode_text(sample.caption))
                )
            if sample.ref.text is not None:
                text = self._bounded(sample.ref.text)
                return _Half(sample.ref, text.encode("utf-8", "replace"), text=text)
        except MediaError as error:
            return Failure(sample.ref, Stage.DECODE, error.reason, str(error))
        return None

    def _bounded(self, text: str) -> str:
        most = self._limits.max_chars
        if len(text) > most:
            message = f"{len(text)} characters, more than the {most} allowed"
            raise MediaError(Reason.TOO_MUCH_TEXT, message)
        return text


def _too_many(size: int | None, most: int) -> MediaError:
    told = "more bytes" if size is None else f"{size} bytes, more"
    return MediaError(Reason.TOO_MANY_BYTES, f"{told} than the {most} allowed")


@dataclass(slots=True)
class _Spent:
    fetch: float = 0.0
    fetch_waiting: float = 0.0
    decode: float = 0.0
    decode_waiting: float = 0.0
    retries: int = 0

    def effort(self) -> Effort:
        busy = {"fetch": self.fetch, "decode": self.decode}
        waiting = {"fetch": self.fetch_waiting, "decode": self.decode_waiting}
        return Effort(busy, self.retries, waiting)


class _KnownError(Exception):
    """Nothing more is to be read: the item is done."""

    def __init__(self, known: Known) -> None:
        super().__init__(known)
        self.known = known


def _together(
    ref: MediaRef, media: _Half | Failure | None, text: _Half | Failure | None
) -> tuple[DecodedMedia | Failure, Pixels | None]:
    """What an item is, given its object and the text that came with it."""
    if isinstance(media, _Half):
        texts = [half.text for half in (text, media) if isinstance(half, _Half) and half.text]
        unused = f"text: {text.reason}" if isinstance(text, Failure) else None
        return _media(media, "\n".join(texts) or None, unused), media.pixels
    if isinstance(text, _Half):
        if not isinstance(media, Failure):
            return _media(text, text.text, None), None
        kind = "text" if _named_text(ref.uri) else "image"
        # Its reference knows the version that was read, where anything was.
        text = text._replace(ref=media.ref)
        return _media(text, text.text, f"{kind}: {media.reason}"), None
    if isinstance(media, Failure):
        also = f"; its text: {text.message}" if isinstance(text, Failure) else ""
        return Failure(media.ref, media.stage, media.reason, f"{media.message}{also}"), None
    return text or Failure(ref, Stage.DECODE, Reason.EMPTY, "neither a picture nor a text"), None


def _media(half: _Half, text: str | None, unused: str | None) -> DecodedMedia:
    return DecodedMedia(
        half.ref,
        half.sha256 or hashlib.sha256(half.data).hexdigest(),
        len(half.data),
        half.width,
        half.height,
        text=text,
        unused=unused,
        embedded=half.embedded,
    )


def _named_text(uri: str) -> bool:
    name = uri.partition("?")[0] if uri.startswith(("http://", "https://")) else uri
    return name.lower().endswith(names.TEXTS)


def _held(sample: TarSample) -> int:
    return len(sample.data or b"") + len(sample.caption or b"")


def _seen(ref: MediaRef, version: str) -> MediaRef:
    """The reference with the version that was read, where no listing and no manifest told one."""
    if not ref.version_unknown:
        return ref
    return ref._replace(version="+".join(part for part in (version, ref.version) if part))
