"""The records that flow between stages: frozen, small, and free of behaviour."""

from __future__ import annotations

import pickle
import re
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import pyarrow as pa

Activation = Literal["softmax", "sigmoid", "cosine"]
Levels = Literal["every", "deepest", "leaves"]
"""Which labels of a hierarchy are tags: the surest ends and all that is above them; the ends alone;
or those of the ends that have nothing below them."""
Precision = Literal["fp32", "bf16", "fp16", "int8", "auto"]
"""Of the image tower. `int8` is for processors; `auto` is the fastest there is, measured."""
Device = Literal["auto", "cpu", "cuda"]
Decode = Literal["exact", "fast", "gpu"]
"""How pictures are decoded: to the pixels of the model's own preprocess, or to nearly those, by the
CPU or, where they are JPEG, by the model's device."""
Retry = Literal["none", "retryable", "all"]
"""Which failures of the same version are tried again."""


class Stage(StrEnum):
    """Where an item failed: the `stage` column of `failures`."""

    LIST = "list"
    READ = "read"
    DECODE = "decode"
    EMBED = "embed"


class Reason(StrEnum):
    """Why an item failed: the closed list of the `reason` column of `failures`.

    Analysts group by these words, so one is added with a line in CHANGELOG.md and never renamed.
    """

    BAD_ROW = "bad_row"
    UNSUPPORTED_URI = "unsupported_uri"
    NOT_FOUND = "not_found"
    PERMISSION_DENIED = "permission_denied"
    UNAVAILABLE = "unavailable"
    TIMED_OUT = "timed_out"
    READ_ERROR = "read_error"
    EMPTY = "empty"
    TOO_MANY_BYTES = "too_many_bytes"
    CORRUPT_ARCHIVE = "corrupt_archive"
    NOT_AN_IMAGE = "not_an_image"
    CORRUPT_IMAGE = "corrupt_image"
    TRUNCATED_IMAGE = "truncated_image"
    UNSUPPORTED_IMAGE = "unsupported_image"
    TOO_MANY_PIXELS = "too_many_pixels"
    NOT_TEXT = "not_text"
    TOO_MUCH_TEXT = "too_much_text"
    OUT_OF_MEMORY = "out_of_memory"
    MODEL_ERROR = "model_error"
    NOT_FINITE = "not_finite"


RETRYABLE = frozenset(
    {
        Reason.PERMISSION_DENIED,  # A night with expired credentials must not be for ever.
        Reason.UNAVAILABLE,
        Reason.TIMED_OUT,
        Reason.READ_ERROR,
        Reason.OUT_OF_MEMORY,
    }
)
"""Reasons that another run may not meet again: the `retryable` column of `failures`."""


class MediaError(Exception):
    """An item, or one half of it, cannot be used: the reason, and a message that says more.

    `retries` is how many tries more than one were made.
    """

    def __init__(self, reason: Reason, message: str, retries: int = 0) -> None:
        super().__init__(message)
        self.reason = reason
        self.retries = retries


_OF_TEXT_ALONE = re.compile("text-[0-9a-f]{8}")
"""The version of a row whose manifest tells none of its object: that of its text."""


class Held(NamedTuple):
    """A version of an item that an output holds; with a `reason` it is there as a failure.

    Of a tar's members `version` is the digest of the whole item, in hex.
    """

    version: str
    reason: str | None


class MediaRef(NamedTuple):
    """One listed item: where it is and which version of it was seen.

    `version` is the store's generation or etag, or mtime and size; empty where a manifest does not
    tell it. `size` is in bytes, None where the listing does not tell. A manifest's row also brings
    its `id`, its `text`, and the values of the columns that are carried to the tables, in the
    order of `--carry`; with `fetched` False there is no object behind `uri`, the text is all there
    is. `problem` says why a row cannot be used. `held` is what the output holds of the item where
    only reading can tell which version it is (of a tar: of its members). A tuple, because
    references cross the shuffle.
    """

    uri: str
    version: str
    size: int | None = None
    id: str | None = None
    text: str | None = None
    carried: tuple[str | None, ...] = ()
    fetched: bool = True
    problem: str | None = None
    held: tuple[Held, ...] = ()

    @property
    def version_unknown(self) -> bool:
        """Whether only reading the object tells its version."""
        if not self.fetched:
            return False
        of_text = self.text is not None and _OF_TEXT_ALONE.fullmatch(self.version) is not None
        return not self.version or of_text


InputKind = Literal["media", "manifest", "tar"]


class Input(NamedTuple):
    """What a job was told to read: a folder, a glob or one object, and what its files are."""

    url: str
    kind: InputKind


@dataclass(frozen=True, slots=True)
class Selection:
    """Which of the files under an input are taken.

    `include` and `exclude` are globs: of a name where they have no `/`, else of the path below the
    input. `extensions` have their dots and are in lower case; None
    leaves it to the input: a folder is searched for pictures, a glob gives what it names.
    """

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    extensions: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class ReadLimits:
    """What reading may take at most.

    `concurrency` objects are fetched at a time, each within `deadline_s`, retries included; none
    has more than `max_bytes`, no text more than `max_chars`.
    """

    concurrency: int = 32
    deadline_s: float = 300.0
    max_bytes: int = 256 * 1024 * 1024
    max_chars: int = 100_000


@dataclass(frozen=True, slots=True)
class Shard:
    """References that travel together and end as one file per table, named by `shard_id`.

    With `tar`, the one reference is a tar: its samples are found by reading it, and they end as
    one or more shards, named after it.
    """

    shard_id: str
    refs: tuple[MediaRef, ...]
    tar: bool = False

    def __reduce__(self) -> tuple[Any, ...]:
        """Packed by columns: neighbours' names are alike, and a local runner holds all shards."""
        columns = tuple(zip(*self.refs, strict=True))
        packed = zlib.compress(pickle.dumps(columns, protocol=5), level=1)
        return _unpacked, (self.shard_id, packed, self.tar)


def _unpacked(shard_id: str, packed: bytes, tar: bool) -> Shard:
    columns = pickle.loads(zlib.decompress(packed))
    return Shard(shard_id, tuple(map(MediaRef._make, zip(*columns, strict=True))), tar)


@dataclass(frozen=True, slots=True)
class Failure:
    """Why one listed item has no embedding: one row of `failures`."""

    ref: MediaRef
    stage: Stage
    reason: Reason
    message: str


class ContentKey(NamedTuple):
    """What an item of picture or text alone is embedded by: equal ones have equal vectors."""

    modality: Literal["image", "text"]
    sha256: str


@dataclass(frozen=True, slots=True)
class DecodedMedia:
    """What is known of one item once its bytes were read and decoded (pixels travel apart).

    `width` and `height` are None where the item has no picture, `text` is None where it has no
    text. `unused` tells of the half that could not be used: `image: not_found`. `size` and the
    digest are of the picture's bytes, or of the text's where there is no picture. With `embedded`
    there are no pixels and no text, because the same bytes have a vector already.
    """

    ref: MediaRef
    content_sha256: str
    size: int
    width: int | None = None
    height: int | None = None
    text: str | None = None
    unused: str | None = None
    embedded: ContentKey | None = None


@dataclass(frozen=True, slots=True)
class BatchPosition:
    """Which part of a shard this is: batch `seq` (from 0), and whether it is the last.

    With `end`, nothing of its tar comes after this shard. `dt` is the day of a shard that is
    stored already and only scored now.
    """

    shard_id: str
    seq: int
    last: bool
    end: bool = False
    dt: str | None = None


@dataclass(frozen=True, slots=True)
class Effort:
    """What a batch cost: busy and waiting seconds per stage, and reads tried again.

    Those of `fetch` and `decode` are summed over threads; of `decode` the busy ones are the
    processor's, and it also waits for that. `device` waits for a batch to be read, `write` for the
    store. `began` is when reading began, as Unix time; `workers` has the processes that read, each
    with the cores that it may use.
    """

    seconds: Mapping[str, float] = field(default_factory=dict)
    retries: int = 0
    waiting: Mapping[str, float] = field(default_factory=dict)
    began: float | None = None
    workers: Mapping[str, int] = field(default_factory=dict)

    def on_device(self, seconds: float, own: float | None) -> Effort:
        """The effort with the model's part: `own` of its seconds were the processor's.

        None where the device is another. A model on the cores that decode waits for them too.
        """
        busy = seconds if own is None else min(own, seconds)
        return self.plus(Effort({"device": busy}, waiting={"device": seconds - busy}))

    def plus(self, *others: Effort) -> Effort:
        """All of it together."""
        efforts = (self, *others)
        began = [effort.began for effort in efforts if effort.began is not None]
        return Effort(
            _sums(effort.seconds for effort in efforts),
            sum(effort.retries for effort in efforts),
            _sums(effort.waiting for effort in efforts),
            min(began, default=None),
            {name: cores for effort in efforts for name, cores in effort.workers.items()},
        )


def _sums(parts: Iterable[Mapping[str, float]]) -> dict[str, float]:
    sums: dict[str, float] = {}
    for part in parts:
        for stage, seconds in part.items():
            sums[stage] = sums.get(stage, 0.0) + seconds
    return sums


@dataclass(frozen=True, slots=True)
class Counts:
    """Items of a batch that its rows do not tell of.

    `listed` are those that only reading has found (a tar's); `reused` and `known_failures` (by
    reason) those that the output holds already, as only reading could tell; `duplicates` those
    that have the vector of another item's equal bytes.
    """

    listed: int = 0
    reused: int = 0
    duplicates: int = 0
    known_failures: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Batch:
    """Part of a shard, decoded: what the model sees, and what never will be seen.

    `pixels` is `uint8[P, H, W, 3]`, a row for each of `media` that has a picture, in order. Rows in
    `encoded` are not filled yet: their JPEGs are to be decoded where the model is.
    """

    position: BatchPosition
    media: tuple[DecodedMedia, ...]
    pixels: npt.NDArray[np.uint8]
    failures: tuple[Failure, ...] = ()
    effort: Effort = Effort()
    counts: Counts = Counts()
    encoded: Mapping[int, npt.NDArray[np.uint8]] = field(default_factory=dict)

    def __len__(self) -> int:
        """The number of items that the model is to embed; Beam's RunInference counts by it."""
        return len(self.media)


@dataclass(frozen=True, slots=True)
class EmbeddedBatch:
    """A batch after the model: rows of `embeddings` and of `failures`, without the pixels.

    `label_sets` are the ids of those that it is to be scored against; None for all.
    """

    position: BatchPosition
    embeddings: pa.RecordBatch
    failures: tuple[Failure, ...] = ()
    effort: Effort = Effort()
    counts: Counts = Counts()
    label_sets: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class TaggedBatch:
    """An embedded batch with the rows of `predictions` of each label set, by label-set id."""

    embedded: EmbeddedBatch
    predictions: Mapping[str, pa.RecordBatch]
    effort: Effort = Effort()


@dataclass(frozen=True, slots=True)
class RunSpec:
    """What every row and file of one run has in common.

    `run_date` is the `dt` of the tables, `YYYY-MM-DD`; `output` the URL they are written under;
    `carry` names the columns of manifests that every table repeats.
    """

    run_id: str
    run_date: str
    output: str
    carry: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """Which model, from where, on what: everything needed to load it, and nothing loaded.

    `name` is an open_clip name (with `pretrained` a tag or a weights file), `hf-hub:ORG/NAME`,
    `local-dir:PATH`, or the URL of a folder on object storage. `batch_size` is how many pictures
    the model takes at a time, None for what is found to be best.
    """

    name: str
    pretrained: str | None = None
    device: Device = "auto"
    precision: Precision = "fp32"
    batch_size: int | None = None
    compiled: bool = False


@dataclass(frozen=True, slots=True)
class Preprocess:
    """How a model wants its pictures, as open_clip's `PreprocessCfg` says it.

    `size` is (height, width) in pixels; `mean` and `std` are per channel of pixels in 0..1;
    `fill_color` (0..255) pads `longest`.
    """

    size: tuple[int, int]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    resize_mode: Literal["shortest", "squash", "longest"] = "shortest"
    fill_color: int = 0


@dataclass(frozen=True, slots=True)
class LabelVectors:
    """A label set in a model's space: row i of `vectors[V, D]` (L2-normalised) is label i's.

    Behind the L labels come the vectors of what speaks against some of them (`opposed` has their
    places), then the background's. Of label i, `parents[i]` is the place of the label above it, -1
    where there is none. Its logit is `logit_scale` (exponentiated, or 1 / temperature) times
    `lengths[i]` times the similarity, plus `logit_bias` and `biases[i]`. A threshold of None keeps
    whatever the score.
    """

    label_set_id: str
    names: tuple[str, ...]
    ids: tuple[str, ...]
    paths: tuple[str, ...]
    parents: tuple[int, ...]
    vectors: npt.NDArray[np.float32]
    opposed: tuple[int, ...]
    lengths: npt.NDArray[np.float32]
    biases: npt.NDArray[np.float32]
    thresholds: tuple[float | None, ...]
    logit_scale: float
    logit_bias: float
    top_k: int
    activation: Activation
    levels: Levels
