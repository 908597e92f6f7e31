"""What an output says of items that are done: the embedded ledger and the scored one.

Both are read from the tables themselves. A local run holds a digest of every item that is done, on
distributed engines `skipping` joins by key what `read_held` gives.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from transforms.ahead import in_order
from transforms.itemkeys import keyed_file, keys_of_rows
from transforms.records import MediaRef, Reason, Retry, Stage
from transforms.schemas import ITEM
from transforms.stored import DamagedError, StoredFile, open_held, stored_files

FILES_AT_ONCE = 16
"""How many files' key columns are read at a time: on an object store each is a few round trips."""

TAR_END = b"beamtag_tar_end"
"""In the footer of an embeddings file: nothing of its tar comes after it."""

_TAR_PART = re.compile(r"(?P<tar>[0-9a-f]{16})-(?P<run>[0-9a-f]{6})-(?P<part>[0-9]{4,})")
_REASONS = (None, *Reason)
_CODES = {None if reason is None else str(reason): code for code, reason in enumerate(_REASONS)}
_UNKNOWN = -1


@dataclass(frozen=True, slots=True)
class LedgerSpec:
    """Whose ledger: that of this model's vectors in this output, as this run takes it."""

    output: str
    model_id: str
    retry: Retry
    run_id: str


def item_key(uri: str, version: str, id: str | None) -> bytes:  # noqa: A002
    """The 16-byte digest that stands for an item."""
    return hashlib.blake2b(f"{uri}\0{version}\0{id or ''}".encode(), digest_size=16).digest()


def key_of(ref: MediaRef) -> bytes:
    """The digest of a reference."""
    return item_key(ref.uri, ref.version, ref.id)


class HeldKeys(NamedTuple):
    """What one file says of items: `keys` (digests, 16 bytes each) and why each one failed.

    `reasons` is None where all are embedded; failures to be tried again are `again`. `part` is
    (tar, run, part) of a tar's shard, `end` whether it is the last, `broken` whether the tar itself
    failed in it and is to be tried again.
    """

    keys: bytes
    reasons: list[str] | None
    again: bytes
    part: tuple[str, str, int] | None
    end: bool
    broken: bool = False


def read_held(file: StoredFile, spec: LedgerSpec) -> HeldKeys:
    """Read the key columns of a file. Raises `DamagedError` and what the store raises."""
    table, end = _key_columns(file)
    named = _TAR_PART.fullmatch(file.shard_id)
    part = (named["tar"], named["run"], int(named["part"])) if named else None
    again, reasons, broken = b"", None, False
    if file.table == "failures":
        settled = _settled(table, spec)
        unsettled = table.filter(pc.invert(settled))
        if part:
            # Every member has an id; the tar's own row never gets a vector that would mend it.
            member = pc.is_valid(unsettled.column("id"))
            broken = not pc.all(member, min_count=0).as_py()
            unsettled = unsettled.filter(member)
        again = _digests(unsettled)
        table = table.filter(settled)
        reasons = table.column("reason").to_pylist()
    return HeldKeys(_digests(table), reasons, again, part, end, broken)


def read_items(
    file: StoredFile, spec: LedgerSpec
) -> Iterator[tuple[str, str, str | None, str | None]]:
    """`uri`, `version`, `id` and, of a failure that stands, the reason; as `read_held`."""
    table, _ = _key_columns(file)
    reasons: Iterable[str | None] = itertools.repeat(None)
    if file.table == "failures":
        table = table.filter(_settled(table, spec))
        reasons = table.column("reason").to_pylist()
    yield from zip(*(table.column(name).to_pylist() for name in ITEM), reasons, strict=False)


def _key_columns(file: StoredFile) -> tuple[pa.Table, bool]:
    more = ("stage", "reason", "retryable", "model") if file.table == "failures" else ()
    with open_held(file.url) as parquet:
        has = parquet.schema_arrow.names
        if lacking := [name for name in ITEM if name not in has]:
            raise DamagedError(file.url, f"it has no column {lacking[0]}")
        end = TAR_END in (parquet.metadata.metadata or {})
        return parquet.read([name for name in (*ITEM, *more) if name in has]), end


def _settled(table: pa.Table, spec: LedgerSpec) -> pa.ChunkedArray | pa.Array:
    """Which failures stand: of this model or of none, and not to be tried again."""
    if spec.retry == "all":
        return pa.array(np.zeros(table.num_rows, dtype=bool))
    stands = pc.not_equal(table.column("stage"), str(Stage.EMBED))
    if "model" in table.column_names:
        stands = pc.or_(stands, pc.equal(table.column("model"), spec.model_id))
    if spec.retry == "retryable":
        stands = pc.and_(stands, pc.invert(table.column("retryable")))
    return stands


def _digests(table: pa.Table) -> bytes:
    """Those of a table's items, end to end; the same as `item_key` of each."""
    return keys_of_rows([table.column(name) for name in ITEM]).tobytes()


@dataclass(slots=True)
class HeldTar:
    """What the files of one tar's shards say of it."""

    parts: dict[str, set[int]] = field(default_factory=dict)
    failed_parts: dict[str, set[int]] = field(default_factory=dict)
    ends: dict[str, int] = field(default_factory=dict)
    broken: set[str] = field(default_factory=set)
    embedded: int = 0
    failed: dict[bytes, str] = field(default_factory=dict)
    again: set[bytes] = field(default_factory=set)

    def add(self, held: HeldKeys) -> None:
        """Take in a file's word."""
        assert held.part is not None
        _, run, part = held.part
        if held.reasons is None:
            self.parts.setdefault(run, set()).add(part)
            self.embedded += len(held.keys) // 16
            if held.end:
                self.ends[run] = part
        else:
            self.failed_parts.setdefault(run, set()).add(part)
            if held.broken:
                self.broken.add(run)
            for key, why in zip(split_keys(held.keys), held.reasons, strict=True):
                self.failed[key] = settled_reason(why, self.failed.get(key, why)) or why
            self.again.update(split_keys(held.again))

    def settle(self, embedded: Callable[[bytes], bool]) -> None:
        """Forget failures that another try has mended."""
        self.failed = {key: why for key, why in self.failed.items() if not embedded(key)}
        self.again = {key for key in self.again if not embedded(key) and key not in self.failed}

    @property
    def done(self) -> bool:
        """Whether a run has read it to its end, every part of that is there, and no more to try.

        A part is there with its vectors and with its failures: without one of them, some are lost.
        """
        ended = any(
            self.parts[run] == self.failed_parts.get(run) == set(range(end + 1))
            for run, end in self.ends.items()
            if run not in self.broken
        )
        return ended and not self.again


class Unscored(NamedTuple):
    """An embeddings file, and the ids of the label sets whose predictions lack its like."""

    file: StoredFile
    label_sets: tuple[str, ...]


def unscored_files(
    output: str, model_id: str, label_sets: Sequence[str], *, again: bool = False
) -> list[Unscored]:
    """The scored ledger: files of this model's vectors that some of the label sets lack.

    With `again` all of its files, for all of them.
    """
    scored = {
        label_set: {
            file.name
            for file in stored_files(output, "predictions", label_set=label_set, model=model_id)
            if not again
        }
        for label_set in label_sets
    }
    found = []
    for file in stored_files(output, "embeddings", model=model_id):
        lacking = tuple(name for name in label_sets if file.name not in scored[name])
        if lacking:
            found.append(Unscored(file, lacking))
    return found


class Ledger:
    """Every item that is done, as digests; and which of them this run's listing has named.

    16 bytes and a little an item. Thread-safe.
    """

    def __init__(self, spec: LedgerSpec, told: Iterable[HeldKeys] | None = None) -> None:
        """Read it from the output, unless `told` what the files say.

        Raises `DamagedError` and what the store raises.
        """
        self.tars: dict[str, HeldTar] = {}
        parts: list[tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint8]]] = []
        if told is None:
            files = [
                *stored_files(spec.output, "failures"),
                *stored_files(spec.output, "embeddings", model=spec.model_id),
            ]
            told = in_order(lambda file: read_held(file, spec), files, FILES_AT_ONCE)
        for held in told:
            pairs = np.frombuffer(held.keys, np.uint64).reshape(-1, 2)
            reasons = held.reasons
            codes = [_CODES[None]] * len(pairs) if reasons is None else map(_code, reasons)
            parts.append((pairs, np.fromiter(codes, np.uint8, len(pairs))))
            if held.part is not None:
                self.tars.setdefault(held.part[0], HeldTar()).add(held)
        pairs = np.concatenate([np.empty((0, 2), np.uint64), *(part[0] for part in parts)])
        codes_of = np.concatenate([np.empty(0, np.uint8), *(part[1] for part in parts)])
        # As `settled_reason`.
        order = np.lexsort((codes_of, pairs[:, 1], pairs[:, 0]))
        pairs, codes_of = pairs[order], codes_of[order]
        first = np.ones(len(pairs), dtype=bool)
        first[1:] = (pairs[1:] != pairs[:-1]).any(axis=1)
        self._high, self._low = pairs[first, 0].copy(), pairs[first, 1].copy()
        self._codes = codes_of[first]
        self._longest = 1
        if len(self._high):
            starts = np.flatnonzero(np.r_[True, self._high[1:] != self._high[:-1]])
            self._longest = int(np.diff(np.r_[starts, len(self._high)]).max())
        self._named = np.zeros(len(self._high), dtype=bool)
        self._new = _Seen()
        self._lock = threading.Lock()
        for tar in self.tars.values():
            tar.settle(lambda key: self.state(key) is True)

    def __len__(self) -> int:
        return len(self._high)

    def take(self, keys: Sequence[bytes]) -> list[str | bool | None]:
        """Of each of these digests: a reason, or True, if it is done; False if it is not.

        None for one that was taken before: an item that a listing names twice is one item.
        """
        with self._lock:
            answers: list[str | bool | None] = []
            for key, place in zip(keys, self._places(b"".join(keys)).tolist(), strict=True):
                if place == _UNKNOWN:
                    answers.append(False if self._new.add(key) else None)
                elif self._named[place]:
                    answers.append(None)
                else:
                    self._named[place] = True
                    answers.append(self._answer(place))
            return answers

    def state(self, key: bytes) -> str | bool:
        """The reason of its failure, or True, if an item is done; False if it is not."""
        (place,) = self._places(key).tolist()
        return False if place == _UNKNOWN else self._answer(place)

    def _answer(self, place: int) -> str | bool:
        reason = _REASONS[self._codes[place]]
        return True if reason is None else str(reason)

    def _places(self, keys: bytes) -> npt.NDArray[np.int64]:
        wanted = np.frombuffer(keys, np.uint64).reshape(-1, 2)
        found = np.full(len(wanted), _UNKNOWN, np.int64)
        start = np.searchsorted(self._high, wanted[:, 0])
        # Two items whose digests are alike in their first half: hardly ever, but then as well.
        for step in range(self._longest if len(self._high) else 0):
            places = np.minimum(start + step, len(self._high) - 1)
            there = (self._high[places] == wanted[:, 0]) & (self._low[places] == wanted[:, 1])
            found[there] = places[there]
        return found


class _Seen:
    """Digests in a file that sqlite keeps aside: in a set they take 100 MB a million."""

    def __init__(self) -> None:
        self._file = keyed_file("seen (digest BLOB PRIMARY KEY)")

    def add(self, digest: bytes) -> bool:
        """Whether it was not there yet."""
        return self._file.execute("INSERT OR IGNORE INTO seen VALUES (?)", (digest,)).rowcount > 0


def _code(reason: str) -> int:
    # A reason of a later version's: that it failed is what counts.
    return _CODES.get(reason, _CODES[str(Reason.READ_ERROR)])


def settled_reason(one: str | None, other: str | None) -> str | None:
    """Of two words on an item the one that counts.

    None, which says that it is embedded, or else the reason that stands first in the closed list.
    """
    return min(one, other, key=lambda reason: _CODES[None] if reason is None else _code(reason))


def split_keys(keys: bytes) -> list[bytes]:
    """Digests that were end to end, one by one."""
    return [keys[start : start + 16] for start in range(0, len(keys), 16)]


@functools.lru_cache(maxsize=1)
def _load_once(spec: LedgerSpec) -> Ledger:
    return Ledger(spec)


_loading = threading.Lock()


def shared_ledger(spec: LedgerSpec) -> Ledger:
    """The one ledger of this process, loaded by whoever asks first."""
    with _loading:
        return _load_once(spec)
