"""A bucket's objects in pages, of one level or of all, several ranges of them at a time.

Nothing here keeps what it has given, nor lets fsspec keep it: however many objects there are, what
is in memory are the pages read ahead.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterable, Iterator
from itertools import chain, pairwise
from typing import Any, NamedTuple

from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_random_exponential

from transforms.ahead import Ahead, ahead
from transforms.storage import version_of
from transforms.storeerrors import transient

PAGE = 1000
"""Objects a request: what both S3 and GCS give at most."""

AT_ONCE = 8
"""How many parts of a bucket are listed at a time."""

PAGES_AHEAD = 4
"""How many pages of each of them may wait; one more is being fetched."""

RANGE_PAGES = 4
"""How long a part should be, in pages: of a longer one, no more than that is fetched in advance."""

MOST_RANGES = 1000
"""Into how many parts a prefix is cut at most, each of which costs a request."""

QUESTIONS = 64
"""About how many requests may be spent on finding where to cut."""

ATTEMPTS = 4
"""How often a page is asked for."""

FIRST_WAIT_S = 1.0
"""The longest that the first wait between them may be; it doubles up to `LONGEST_WAIT_S`."""

LONGEST_WAIT_S = 30.0


class Entry(NamedTuple):
    """One file: its name as fsspec knows it, without protocol, and what the listing tells of it.

    `version` is that of `storage.version_of`; `size` is in bytes, None where it is not told.
    """

    name: str
    version: str
    size: int | None


class Page(NamedTuple):
    """Some files, and some folders (names with a slash); `token` asks for what follows.

    `last` is the last name that was listed, though it be no file's.
    """

    files: list[Entry]
    folders: list[str]
    last: str = ""
    token: str | None = None


class Place(ABC):
    """A filesystem as this module sees it; a prefix is the start of a name, bucket included."""

    @abstractmethod
    def level(self, prefix: str) -> Iterator[Page]:
        """The files and folders whose name begins so and has no further slash."""

    @abstractmethod
    def below(self, prefix: str) -> Iterator[Iterable[Entry]]:
        """All files whose name begins so, the fastest way."""

    @abstractmethod
    def flat(self, prefix: str) -> Iterator[Iterable[Entry]]:
        """All files whose name begins so, as one of several listings at a time."""

    @abstractmethod
    def together(self, parts: Iterable[Iterator[Any]]) -> Iterator[Any]:
        """What the parts give, one after the other; several are read at a time if that helps."""

    def enterable(self, folder: str) -> bool:
        """Whether a folder that no listing has shown may be looked into."""
        return True


class Bucket(Place):
    """A bucket: names in one flat order, given in pages of any range of them."""

    ordered = True

    def __init__(self, filesystem: Any, path: str) -> None:
        self._filesystem = filesystem
        self._name: str = filesystem.split_path(path)[0]
        self._skip = len(self._name) + 1
        # On top of the clients' own retries (gcsfs asks 6 times over half a minute, botocore and
        # s3fs 5 times each), which do not know every error that passes: a listing of hours should
        # not end, and start over, because of one page.
        self._ask = Retrying(
            stop=stop_after_attempt(ATTEMPTS),
            wait=wait_random_exponential(FIRST_WAIT_S, LONGEST_WAIT_S),
            retry=retry_if_exception(transient),
            reraise=True,
        )

    @abstractmethod
    def _page(
        self, prefix: str, one_level: bool, start: str | None, end: str | None, token: str | None
    ) -> Page:
        """Ask for one page, of names from `start` on or after an earlier page's `token`.

        What is listed from `end` on is not used. All names and prefixes begin with the bucket's.
        """

    def _pages(
        self,
        prefix: str,
        one_level: bool = False,
        start: str | None = None,
        end: str | None = None,
        token: str | None = None,
    ) -> Iterator[Page]:
        while True:
            page: Page = self._ask(self._page, prefix, one_level, start, end, token)
            yield page
            token = page.token
            if not token:
                return

    def level(self, prefix: str) -> Iterator[Page]:
        """The files and folders whose name begins so and has no further slash."""
        return self._pages(prefix, one_level=True)

    def flat(
        self,
        prefix: str,
        start: str | None = None,
        end: str | None = None,
        token: str | None = None,
    ) -> Iterator[list[Entry]]:
        """The pages of a range of names, `end` not included."""
        # A token is for the listing that gave it, and that one had no end.
        asked_end = None if token else end
        for page in self._pages(prefix, start=start, end=asked_end, token=token):
            files = page.files
            past = bool(end and page.last >= end)
            # S3 has no end, some emulators have no start either.
            if past or (start and files and files[0].name < start):
                files = [
                    file
                    for file in files
                    if (not start or file.name >= start) and (not end or file.name < end)
                ]
            yield files
            if past:
                return

    def below(self, prefix: str) -> Iterator[list[Entry]]:
        """The first page, then the ranges between some of the folders below, several at a time.

        Ranges, not folders: a thousand folders of ten objects are ten requests, not a thousand,
        and what comes is in flat order as it is. About `QUESTIONS` + `MOST_RANGES` requests are
        made at most beyond one for every full page.
        """
        pages = self._pages(prefix)
        first = next(pages)
        yield first.files
        if not first.token:
            return
        ends = [*self._bounds(prefix, first), None] if self.ordered else [None]
        yield from self.together(
            chain(
                [self.flat(prefix, end=ends[0], token=first.token)],
                (self.flat(prefix, start, end) for start, end in pairwise(ends)),
            )
        )

    def _bounds(self, prefix: str, first: Page) -> list[str]:
        """Names behind the first page at which to cut: folders, as deep as it takes."""
        begun = first.files[0].name if first.files else ""
        found: list[str] = []
        unasked, questions, passed = [prefix], QUESTIONS, 0
        while unasked and questions > 0:
            # Of too many, some from everywhere.
            sample = unasked[:: -(-len(unasked) // questions)]
            unasked = []
            for folders in self.together(self._folders(folder) for folder in sample):
                unasked += folders
                questions -= 1
                if questions <= 0:
                    break
            found += unasked
            passed = sum(begun < folder <= first.last for folder in found)
            if passed and len(found) >= AT_ONCE:
                break  # The folders are smaller than a page: deeper ones would not help.
        found = sorted(folder for folder in found if folder > first.last)
        # As many folders a range as, judging by the first page, fill it.
        step = max(1, passed * RANGE_PAGES, -(-len(found) // MOST_RANGES))
        return found[::step]

    def _folders(self, prefix: str) -> Iterator[list[str]]:
        """The folders of a level in pages, up to one that has none: files may be without end."""
        for page in self.level(prefix):
            yield page.folders
            if not page.folders:
                return

    def together(self, parts: Iterable[Iterator[Any]]) -> Iterator[Any]:
        """What the parts give, one after the other, `AT_ONCE` of them read at a time."""
        parts = iter(parts)
        reading: deque[Ahead[Any]] = deque()
        try:
            while True:
                while len(reading) < AT_ONCE and (part := next(parts, None)) is not None:
                    reading.append(ahead(part, PAGES_AHEAD))
                if not reading:
                    return
                yield from reading[0]
                reading.popleft()
        finally:
            for part in reading:
                part.close()


class GoogleBucket(Bucket):
    """A bucket of Google Cloud Storage, by the JSON interface."""

    def _page(
        self, prefix: str, one_level: bool, start: str | None, end: str | None, token: str | None
    ) -> Page:
        reply = self._filesystem.call(
            "GET",
            "b/{}/o",
            self._name,
            json_out=True,
            prefix=prefix[self._skip :],
            delimiter="/" if one_level else None,
            startOffset=start and start[self._skip :],
            endOffset=end and end[self._skip :],
            pageToken=token,
            maxResults=PAGE,
            fields="nextPageToken,prefixes,items(name,generation,size)",
        )
        bucket, items = self._name, reply.get("items", ())
        files = [
            Entry(
                f"{bucket}/{key}",
                version_of(item),
                None if (size := item.get("size")) is None else int(size),
            )
            for item in items
            if not (key := item["name"]).endswith("/")
        ]
        folders = [f"{bucket}/{key}" for key in reply.get("prefixes", ())]
        last = f"{bucket}/{items[-1]['name']}" if items else ""
        return Page(files, folders, last, reply.get("nextPageToken"))


class AmazonBucket(Bucket):
    """A bucket of S3, or of what speaks like it."""

    def __init__(self, filesystem: Any, path: str) -> None:
        super().__init__(filesystem, path)
        # Directory buckets list in no order.
        self.ordered = not self._name.endswith("--x-s3")

    def _page(
        self, prefix: str, one_level: bool, start: str | None, end: str | None, token: str | None
    ) -> Page:
        options: dict[str, Any] = {"Prefix": prefix[self._skip :], "MaxKeys": PAGE}
        if one_level:
            options["Delimiter"] = "/"
        if token:
            options["ContinuationToken"] = token
        elif start:
            # After, not from: but a start ends with a slash, and such an object is no file.
            options["StartAfter"] = start[self._skip :]
        # botocore asks for names URL-encoded, and decodes them: XML cannot hold every character.
        reply = self._filesystem.call_s3("list_objects_v2", Bucket=self._name, **options)
        bucket, items = self._name, reply.get("Contents", ())
        files = [
            Entry(f"{bucket}/{key}", version_of(item), item.get("Size"))
            for item in items
            if not (key := item["Key"]).endswith("/")
        ]
        folders = [f"{bucket}/{item['Prefix']}" for item in reply.get("CommonPrefixes", ())]
        last = f"{bucket}/{items[-1]['Key']}" if items else ""
        return Page(files, folders, last, reply.get("NextContinuationToken"))
