"""What a model says of the items that somebody knows the truth of: scores, tags and best labels.

From stored vectors, scored again, or from the tables of predictions as they are. Memory grows with
the items that are asked for, not with the archive.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from transforms.hierarchy import Tree, tree_of
from transforms.itemkeys import joined
from transforms.labels import LabelSet
from transforms.latest import Items
from transforms.metrics import best_labels, deepest, ranked, with_above
from transforms.records import LabelVectors
from transforms.stored import open_parquet, stored_files

RANKS = 5
"""How many best labels are kept of an item: what top-5 asks for."""

ROWS_AT_ONCE = 64 * 1024

Mask = npt.NDArray[np.bool_]
Places = npt.NDArray[np.int64]
Scores = npt.NDArray[np.float32]


class Answers(NamedTuple):
    """Of N items and L labels: `scores[N, L]`, minus infinity where a table does not tell them.

    `tags[N, L]` are the labels chosen by the set's thresholds and all that is above them;
    `best[N, K]` the best labels with nothing (of tables: no tag) below them, best first, then -1.
    """

    uris: list[str]
    scores: Scores
    tags: Mask
    best: Places


def from_vectors(items: Iterable[Items], labels: LabelVectors) -> Answers:
    """Score vectors against labels, some at a time."""
    # Not at the top: tables are read without waiting for Beam.
    from transforms.scoring import SCORES_AT_ONCE, scores, select, similarities

    tree = tree_of(labels.parents)
    rows = max(1, SCORES_AT_ONCE // len(labels.vectors))
    parts = []
    for some in items:
        for start in range(0, len(some.uris), rows):
            score = scores(similarities(some.vectors[start : start + rows], labels), labels, tree)
            tags = _mask(select(score, labels, tree), score.shape)
            best = best_labels(score, tree, RANKS)
            uris = some.uris[start : start + rows]
            parts.append(Answers(uris, score, with_above(tags, tree), best))
    return _together(parts, len(labels.names))


def from_tables(output: str, label_set: LabelSet, model_id: str, uris: Collection[str]) -> Answers:
    """The latest predictions of these items, as they are stored.

    Raises what the store and pyarrow raise.
    """
    tree = tree_of(label_set.parents)
    wanted = pa.array(sorted(uris), pa.string())
    keys = pa.array([label.key for label in label_set.labels], pa.string())
    parts = list(_rows(output, label_set.label_set_id, model_id, wanted))
    if not parts:
        return _together([], len(keys))
    table = _latest(pa.Table.from_batches(parts).combine_chunks())
    encoded = joined([_chunk(table, "uri"), _chunk(table, "id")]).dictionary_encode()
    items = encoded.indices.to_numpy()
    _, firsts = np.unique(items, return_index=True)
    places = pc.index_in(_chunk(table, "label_id"), keys).fill_null(-1).to_numpy()
    told = places >= 0
    score = np.full((len(firsts), len(keys)), -np.inf, np.float32)
    scores = table.column("score").to_numpy()
    score[items[told], places[told]] = scores[told]
    return Answers(
        uris=_chunk(table, "uri").take(pa.array(firsts)).to_pylist(),
        scores=score,
        tags=with_above(score > -np.inf, tree),
        best=_best_tags(score, tree),
    )


def _best_tags(score: Scores, tree: Tree) -> Places:
    ends = deepest(score > -np.inf, tree)
    return ranked(np.where(ends, score, -np.inf), RANKS)


def _rows(
    output: str, label_set_id: str, model_id: str, wanted: pa.Array
) -> Iterator[pa.RecordBatch]:
    """The rows of these items, with the number of their file."""
    columns = ["uri", "version", "id", "label_id", "score", "embedded_at"]
    files = stored_files(output, "predictions", label_set=label_set_id, model=model_id)
    for number, file in enumerate(files):
        with open_parquet(file.url) as parquet:
            for batch in parquet.iter_batches(ROWS_AT_ONCE, columns=columns):
                kept = batch.filter(pc.is_in(batch.column("uri"), wanted))
                if kept.num_rows:
                    yield kept.append_column("file", pa.repeat(number, kept.num_rows))


def _latest(table: pa.Table) -> pa.Table:
    """Of each item (`uri` and `id`) the rows of the version that was embedded last."""
    item, version = (
        joined([_chunk(table, name) for name in names]).dictionary_encode().indices.to_numpy()
        for names in (("uri", "id"), ("version",))
    )
    time = pc.cast(table.column("embedded_at"), pa.int64()).to_numpy()
    number = table.column("file").to_numpy()
    order = np.lexsort((np.arange(len(item)), number, time, item))
    lasts = order[np.append(item[order[1:]] != item[order[:-1]], True)]
    # Items are numbered from 0 on, so the last row of item i is at lasts[i].
    last = lasts[item]
    of_last = (version == version[last]) & (time == time[last]) & (number == number[last])
    return table.filter(pa.array(of_last)).combine_chunks()


def _chunk(table: pa.Table, name: str) -> pa.Array:
    return table.column(name).combine_chunks()


def _mask(places: Places, shape: Sequence[int]) -> Mask:
    """Places `[N, K]`, -1 for none, as a mask `[N, L]`."""
    mask = np.zeros((shape[0], shape[1] + 1), bool)
    np.put_along_axis(mask, places, True, axis=1)
    # -1 is the column behind the last label.
    return mask[:, :-1]


def _together(parts: Sequence[Answers], count: int) -> Answers:
    if not parts:
        empty = np.empty((0, count))
        best = np.empty((0, min(RANKS, count)), np.int64)
        return Answers([], empty.astype(np.float32), empty.astype(bool), best)
    return Answers(
        [uri for part in parts for uri in part.uris],
        np.concatenate([part.scores for part in parts]),
        np.concatenate([part.tags for part in parts]),
        np.concatenate([part.best for part in parts]),
    )
