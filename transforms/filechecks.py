"""Files of an output read from end to end, one shard's at a time, with what is wrong in them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_random_exponential

from transforms.itemkeys import NO_KEYS, Keys, Numbers, joined, keys_of_rows, keys_of_runs
from transforms.lookups import Lookups, lookup_keys
from transforms.records import Stage
from transforms.schemas import ITEM
from transforms.stored import StoredFile, open_parquet, read_columns
from transforms.storeerrors import describe, transient
from transforms.verifying import (
    Finding,
    Kind,
    Mask,
    bad_ranks,
    bad_vectors,
    count,
    schema_problem,
    version_problem,
)

BATCH_ROWS = 4096
"""How many rows of a file are in memory at a time, of each file that is being read."""

ATTEMPTS = 3
"""How often a file is asked for where asking again may help, on top of the clients' own."""

FIRST_WAIT_S = 1.0
LONGEST_WAIT_S = 10.0

_NO_NUMBERS = np.empty(0, np.int64)


@dataclass(slots=True)
class Contents:
    """What a file holds, as far as other files are compared with it.

    `keys` stand for its items: of `embeddings` and `failures` row by row, of `predictions` each
    once; `rows` are their (first) rows, `owners` which of `owner_names` (model and run) each is of.
    `keys` is None where the items cannot be told.
    """

    file: StoredFile
    findings: list[Finding] = field(default_factory=list)
    row_count: int = 0
    dim: int | None = None
    keys: Keys | None = None
    rows: Numbers = field(default_factory=lambda: _NO_NUMBERS)
    owners: Numbers = field(default_factory=lambda: _NO_NUMBERS)
    owner_names: list[str] = field(default_factory=list)
    lookups: Keys = field(default_factory=lambda: NO_KEYS)

    def find(self, kind: Kind, message: str) -> None:
        """Note what is wrong with the file."""
        self.findings.append(Finding(kind, self.file.url, message))


def check_shard(
    embeddings: StoredFile | None,
    predictions: Sequence[StoredFile],
    label_sets: Sequence[str],
    lookups: Lookups | None,
) -> list[Contents]:
    """The files of one shard of one model, against each other too; `label_sets` are to be there."""
    scored = [check_file(file, None) for file in predictions]
    if embeddings is None:
        for of in scored:
            of.find(Kind.STRAY_PREDICTIONS, "there is no embeddings file of that dt and shard")
        return scored
    embedded = check_file(embeddings, lookups)
    for label_set in label_sets:
        if label_set not in {file.label_set for file in predictions}:
            message = f"has no predictions of label_set={label_set}"
            embedded.find(Kind.MISSING_PREDICTIONS, message)
    for of in scored:
        if difference := _out_of_step(embedded, of):
            of.find(Kind.OUT_OF_STEP, difference)
    return [embedded, *scored]


def _out_of_step(embedded: Contents, scored: Contents) -> str | None:
    if embedded.keys is None or scored.keys is None:
        return None
    unscored = ~np.isin(embedded.keys, scored.keys)
    unknown = ~np.isin(scored.keys, embedded.keys)
    told = []
    if unscored.any():
        example = uri_at(embedded.file, embedded.rows[unscored][0])
        lost = len(np.unique(embedded.keys[unscored]))
        told.append(f"lacks {count(lost, 'item')} of its embeddings file, such as {example}")
    if unknown.any():
        example = uri_at(scored.file, scored.rows[unknown][0])
        told.append(
            f"has {count(int(unknown.sum()), 'item')} that its embeddings file has not, "
            f"such as {example}"
        )
    return "; ".join(told) or None


def uri_at(file: StoredFile, row: int) -> str:
    """The `uri` of a row. Raises what the store and pyarrow raise."""
    return str(read_columns(file.url, ["uri"]).column("uri")[int(row)].as_py())


def check_file(file: StoredFile, lookups: Lookups | None) -> Contents:
    """Read all of a file, and check what can be told of it alone."""
    ask = Retrying(
        stop=stop_after_attempt(ATTEMPTS),
        wait=wait_random_exponential(FIRST_WAIT_S, LONGEST_WAIT_S),
        retry=retry_if_exception(transient),
        reraise=True,
    )
    try:
        return ask(_read, file, lookups)
    # pyarrow's errors, of what is damaged, and those of any store's client.
    except Exception as error:
        contents = Contents(file)
        contents.find(Kind.UNREADABLE, " ".join(describe(error).split()))
        return contents


def _read(file: StoredFile, lookups: Lookups | None) -> Contents:
    contents = Contents(file)
    with open_parquet(file.url, checksums=True) as parquet:
        schema = parquet.schema_arrow
        version = version_problem(parquet.metadata.metadata)
        wrong = schema_problem(schema, file.table)
        if version:
            contents.find(Kind.OLD_SCHEMA, version)
        elif wrong:
            contents.find(Kind.WRONG_SCHEMA, wrong)
        reading = _Reading(contents, lookups, told=_is_text(schema, "uri", "version"))
        sound = wrong is None
        if sound and file.table == "embeddings":
            contents.dim = schema.field("embedding").type.list_size
        for batch in parquet.iter_batches(BATCH_ROWS, use_threads=False):
            # Also that text is UTF-8, which reading does not ask.
            batch.validate(full=True)
            reading.add(batch, sound=sound)
            contents.row_count += batch.num_rows
        # A column that ends early, by a damaged header of a page, ends all others without an error.
        if contents.row_count != (rows := parquet.metadata.num_rows):
            raise pa.ArrowInvalid(f"only {contents.row_count} of its {rows} rows can be read")
    reading.end(sound=sound)
    return contents


def _is_text(schema: pa.Schema, *names: str) -> bool:
    """Whether there is one column of each of the names, and it is of text."""
    places = [schema.get_field_index(name) for name in names]
    return all(place >= 0 and schema.field(place).type == pa.string() for place in places)


class _Reading:
    """What is kept of the batches of a file until its end."""

    def __init__(self, contents: Contents, lookups: Lookups | None, *, told: bool) -> None:
        self._contents = contents
        self._lookups = lookups
        self._told = told
        self._keys: list[Keys] = [NO_KEYS]
        self._sizes: list[Numbers] = [_NO_NUMBERS]
        self._owners: list[Numbers] = [_NO_NUMBERS]
        self._owner_codes: dict[str, int] = {}
        self._found: list[Keys] = [NO_KEYS]
        self._ranks: list[Numbers] = [_NO_NUMBERS]
        self._labelled: list[Mask] = [np.empty(0, dtype=bool)]
        self._bad: dict[Kind, tuple[int, str]] = {}

    def add(self, batch: pa.RecordBatch, *, sound: bool) -> None:
        file = self._contents.file
        if self._told:
            item = [_text(batch, name) for name in ITEM]
            if file.table == "predictions":
                keys, sizes = keys_of_runs(item)
                self._sizes.append(sizes)
            else:
                keys = keys_of_rows(item)
                self._add_owners(batch)
                self._look_up(item, batch)
            self._keys.append(keys)
        if sound and file.table == "embeddings":
            not_finite, not_normalised = bad_vectors(batch.column("embedding"))
            self._note(Kind.NOT_FINITE, batch, not_finite)
            self._note(Kind.NOT_NORMALISED, batch, not_normalised)
        if sound and file.table == "predictions":
            ranks = batch.column("rank").to_numpy()
            self._ranks.append(ranks)
            self._labelled.append(batch.column("label").is_valid().to_numpy(zero_copy_only=False))
            scores = [_numbers(batch, name) for name in ("score", "similarity")]
            self._note(Kind.NOT_FINITE, batch, ~np.isfinite(scores).all(axis=0) & (ranks > 0))

    def _add_owners(self, batch: pa.RecordBatch) -> None:
        if self._contents.file.table == "failures":
            model = _text(batch, "model")
        else:
            model = pa.repeat(self._contents.file.model, batch.num_rows)
        encoded = joined([model, _text(batch, "run_id")]).dictionary_encode()
        names = encoded.dictionary.to_pylist()
        codes = [self._owner_codes.setdefault(name, len(self._owner_codes)) for name in names]
        self._owners.append(np.array(codes, np.int64)[encoded.indices.to_numpy()])

    def _look_up(self, item: list[pa.Array], batch: pa.RecordBatch) -> None:
        lookups, file = self._lookups, self._contents.file
        if lookups is None or file.model not in ("", lookups.model):
            return
        if file.table == "failures":
            # What one model cannot take another may; what cannot be read is every model's.
            others = pc.and_(
                pc.equal(_text(batch, "stage"), Stage.EMBED),
                pc.not_equal(_text(batch, "model"), lookups.model),
            )
            item = [column.filter(pc.invert(others.fill_null(False))) for column in item]
        uri, version, id_ = item
        self._found.append(lookup_keys(uri, version, id_, lookups))

    def _note(self, kind: Kind, batch: pa.RecordBatch, bad: Mask) -> None:
        if bad.any():
            seen, example = self._bad.get(kind, (0, ""))
            example = example or batch.column("uri")[int(bad.argmax())].as_py()
            self._bad[kind] = (seen + int(bad.sum()), example)

    def end(self, *, sound: bool) -> None:
        contents = self._contents
        for kind, (number, example) in self._bad.items():
            contents.find(kind, f"{count(number, 'row')}, such as that of {example}")
        if not self._told:
            return
        keys = np.concatenate(self._keys)
        if contents.file.table != "predictions":
            contents.keys = keys
            contents.rows = np.arange(len(keys))
            contents.owners = np.concatenate(self._owners)
            contents.owner_names = list(self._owner_codes)
            contents.lookups = np.concatenate(self._found)
            return
        contents.keys, first, codes = np.unique(keys, return_index=True, return_inverse=True)
        sizes = np.concatenate(self._sizes)
        contents.rows = (np.cumsum(sizes) - sizes)[first]
        if sound:
            self._check_ranks(np.repeat(codes, sizes))

    def _check_ranks(self, items: Numbers) -> None:
        repeated, odd = bad_ranks(
            items, np.concatenate(self._ranks), np.concatenate(self._labelled)
        )
        for kind, bad, what in (
            (Kind.REPEATED_ROW, repeated, "with a rank that another row of the item has"),
            (Kind.OUT_OF_STEP, odd, "of a rank or label that cannot be"),
        ):
            if bad.any():
                example = uri_at(self._contents.file, int(bad.argmax()))
                number = count(int(bad.sum()), "row")
                self._contents.find(kind, f"{number} {what}, such as one of {example}")


def _text(batch: pa.RecordBatch, name: str) -> pa.Array:
    """A text column; without text where there is no such column."""
    if _is_text(batch.schema, name):
        return batch.column(name)
    return pa.nulls(batch.num_rows, pa.string())


def _numbers(batch: pa.RecordBatch, name: str) -> Numbers:
    numbers: Numbers = batch.column(name).fill_null(np.nan).to_numpy(zero_copy_only=False)
    return numbers
