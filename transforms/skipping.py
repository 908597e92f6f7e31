"""SkipDone: what is listed, against what the output holds; only what is not done goes on.

A local run asks the ledger of its process. On other engines `JoinDone` brings both sides together
by key, so that no worker needs memory for the whole archive.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import apache_beam as beam
from apache_beam.transforms.window import GlobalWindow
from apache_beam.utils.windowed_value import WindowedValue

from transforms.accounting import Account
from transforms.ledger import (
    HeldKeys,
    HeldTar,
    LedgerSpec,
    item_key,
    key_of,
    read_held,
    read_items,
    settled_reason,
    shared_ledger,
    split_keys,
)
from transforms.progress import progress
from transforms.records import Held, MediaRef, Shard
from transforms.storage import StorageOptions, use_storage_options
from transforms.stored import StoredFile

BLOCK = 4096
"""References that are looked up at a time."""

ACCOUNTS = "accounts"
"""The output of the accounts of what was listed; the other is what is left to do."""


@dataclass
class SkipDone(beam.PTransform[beam.PCollection[MediaRef], beam.PCollection[Any]]):
    """References to those that are not done, each item once, in a run of one process.

    Gives a `DoOutputsTuple`: `new`, and `accounts` of the listed, the reused and the known to fail.
    """

    ledger: LedgerSpec
    storage_options: StorageOptions = field(default_factory=dict)

    def expand(self, pcoll: beam.PCollection[MediaRef]) -> Any:
        """Wire the lookup."""
        return pcoll | "LookUp" >> beam.ParDo(
            _LookUp(self.ledger, self.storage_options)
        ).with_outputs(ACCOUNTS, main="new")


class _LookUp(beam.DoFn):
    """A DoFn for the references that are looked up together."""

    def __init__(self, ledger: LedgerSpec, storage_options: StorageOptions) -> None:
        self._spec = ledger
        self._storage_options = storage_options

    def setup(self) -> None:
        use_storage_options(self._storage_options)
        self._ledger = shared_ledger(self._spec)

    def start_bundle(self) -> None:
        self._waiting: list[MediaRef] = []
        self._account = Account()

    def process(self, ref: MediaRef) -> Iterator[MediaRef]:
        self._waiting.append(ref)
        if len(self._waiting) == BLOCK:
            yield from self._new()

    def finish_bundle(self) -> Iterator[Any]:
        for ref in self._new():
            yield _at_end(ref)
        yield beam.pvalue.TaggedOutput(ACCOUNTS, _at_end(self._account))

    def _new(self) -> Iterator[MediaRef]:
        refs, self._waiting = self._waiting, []
        answers = self._ledger.take([key_of(ref) for ref in refs])
        try_anyway = self._spec.retry != "none"
        new = 0
        for ref, answer in zip(refs, answers, strict=True):
            if answer is None:
                continue
            self._account.listed += 1
            # Whether it is still the version that failed is not known before it is read.
            if answer is False or (try_anyway and ref.version_unknown):
                new += 1
                yield ref
            elif answer is True:
                self._account.reused += 1
            else:
                self._account.known_failures[str(answer)] += 1
        progress.add(listed=new)


@dataclass
class SkipDoneTars(beam.PTransform[beam.PCollection[Shard], beam.PCollection[Any]]):
    """The same for tars: one that was read to its end is done, whatever became of its members."""

    ledger: LedgerSpec
    storage_options: StorageOptions = field(default_factory=dict)

    def expand(self, pcoll: beam.PCollection[Shard]) -> Any:
        """Wire the lookup."""
        return pcoll | "LookUp" >> beam.FlatMap(
            _look_up_tar, self.ledger, self.storage_options
        ).with_outputs(ACCOUNTS, main="new")


def _look_up_tar(shard: Shard, spec: LedgerSpec, storage_options: StorageOptions) -> Iterator[Any]:
    use_storage_options(storage_options)
    tar = shared_ledger(spec).tars.get(shard.shard_id)
    if tar is None or not tar.done:
        yield shard
    else:
        yield beam.pvalue.TaggedOutput(ACCOUNTS, _account_of(tar))


def _account_of(tar: HeldTar) -> Account:
    return Account(
        listed=tar.embedded + len(tar.failed),
        reused=tar.embedded,
        known_failures=Counter(tar.failed.values()),
    )


@dataclass
class JoinDone(beam.PTransform[Any, Any]):
    """References with the output's own rows, joined by item, to those that are not done.

    Takes `listed`, `tars` (shards of one tar each) and the output's `files` of embeddings and
    failures; gives `new`, `new_tars` and `accounts`.
    """

    ledger: LedgerSpec
    storage_options: StorageOptions = field(default_factory=dict)

    def expand(self, pcoll: dict[str, Any]) -> dict[str, Any]:
        """Wire both joins."""
        files = pcoll["files"] | "ShuffleFiles" >> beam.Reshuffle()
        joined = {
            "refs": pcoll["listed"] | "KeyListed" >> beam.Map(lambda ref: (_of_any(ref), ref)),
            "held": files
            | "ReadItems" >> beam.FlatMap(_read_items, self.ledger, self.storage_options),
        } | "JoinItems" >> beam.CoGroupByKey()
        items = joined | "SkipItems" >> beam.ParDo(
            _SkipJoined(_new_items, self.ledger)
        ).with_outputs(ACCOUNTS, main="new")
        joined_tars = {
            "refs": pcoll["tars"] | "KeyTars" >> beam.Map(lambda shard: (shard.shard_id, shard)),
            "held": files
            | "ReadParts" >> beam.FlatMap(_read_parts, self.ledger, self.storage_options),
        } | "JoinTars" >> beam.CoGroupByKey()
        tars = joined_tars | "SkipTars" >> beam.ParDo(
            _SkipJoined(_new_tars, self.ledger)
        ).with_outputs(ACCOUNTS, main="new")
        accounts = (items[ACCOUNTS], tars[ACCOUNTS]) | "ListedAccounts" >> beam.Flatten()
        return {"new": items.new, "new_tars": tars.new, ACCOUNTS: accounts}


class _SkipJoined(beam.DoFn):
    """A DoFn for the account of its bundle: one for every item would be as many as items."""

    def __init__(
        self,
        new: Callable[[Sequence[Any], Iterable[Any], LedgerSpec, Account], Iterator[Any]],
        ledger: LedgerSpec,
    ) -> None:
        self._new = new
        self._spec = ledger

    def start_bundle(self) -> None:
        self._account = Account()

    def process(self, joined: tuple[Any, dict[str, Iterable[Any]]]) -> Iterator[Any]:
        _, sides = joined
        if refs := list(sides["refs"]):
            yield from self._new(refs, sides["held"], self._spec, self._account)

    def finish_bundle(self) -> Iterator[Any]:
        yield beam.pvalue.TaggedOutput(ACCOUNTS, _at_end(self._account))


def _new_items(
    refs: Sequence[MediaRef], held: Iterable[Held], spec: LedgerSpec, account: Account
) -> Iterator[MediaRef]:
    """The references, of one URI and id, whose versions are not done."""
    states: dict[str, str | None] = {}
    for version, reason in held:
        states[version] = settled_reason(reason, states.get(version, reason))
    # Sorted: which of an item's references counts must not depend on who comes first.
    for ref in {ref.version: ref for ref in sorted(refs, key=repr)}.values():
        account.listed += 1
        if ref.version_unknown and (spec.retry != "none" or ref.version not in states):
            yield ref._replace(held=tuple(Held(*state) for state in states.items()))
        elif ref.version not in states:
            yield ref
        elif (reason := states[ref.version]) is None:
            account.reused += 1
        else:
            account.known_failures[reason] += 1


def _new_tars(
    shards: Sequence[Shard], held: Iterable[HeldKeys], spec: LedgerSpec, account: Account
) -> Iterator[Shard]:
    """A tar, unless it is done; with what the output holds of its members."""
    del spec
    shard = shards[0]
    tar, embedded = HeldTar(), set()
    for part in held:
        tar.add(part)
        if part.reasons is None:
            embedded.update(split_keys(part.keys))
    tar.settle(embedded.__contains__)
    if tar.done:
        account.add(_account_of(tar))
        return
    states: dict[bytes, str | None] = {**tar.failed, **dict.fromkeys(embedded)}
    ref = shard.refs[0]._replace(held=tuple(Held(key.hex(), why) for key, why in states.items()))
    yield Shard(shard.shard_id, (ref,), tar=True)


def _of_any(ref: MediaRef) -> bytes:
    """What all versions of an item have in common."""
    return item_key(ref.uri, "", ref.id)


def _read_items(
    file: StoredFile, spec: LedgerSpec, storage_options: StorageOptions
) -> Iterator[tuple[bytes, Held]]:
    use_storage_options(storage_options)
    for uri, version, id_, reason in read_items(file, spec):
        yield item_key(uri, "", id_), Held(version, reason)


def _read_parts(
    file: StoredFile, spec: LedgerSpec, storage_options: StorageOptions
) -> Iterator[tuple[str, HeldKeys]]:
    if "-" not in file.shard_id:
        return
    use_storage_options(storage_options)
    held = read_held(file, spec)
    if held.part is not None:
        yield held.part[0], held


def _at_end(value: Any) -> WindowedValue:
    window = GlobalWindow()
    return WindowedValue(value, window.max_timestamp(), (window,))
