"""EmbedMedia: decoded batches through Beam's RunInference with our model handler; no maths.

EmbedLabels: the words, once per run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import apache_beam as beam

from transforms.decoding import ImageDecoder
from transforms.devicedecoding import decode_encoded
from transforms.duplicates import embed_once
from transforms.encoding import embed_batch
from transforms.examples import place_labels
from transforms.knownvectors import shared_vectors
from transforms.labels import LabelSet
from transforms.ledger import LedgerSpec
from transforms.lightimports import without
from transforms.model import LazyModel, check_decode
from transforms.records import (
    Batch,
    EmbeddedBatch,
    LabelVectors,
    ModelSpec,
    ReadLimits,
    RunSpec,
)
from transforms.storage import StorageOptions, use_storage_options

# The manager of several models imports torch, which a night with nothing new does without.
with without("apache_beam.ml.inference.model_manager"):
    from apache_beam.ml.inference.base import ModelHandler, RunInference


class OpenClipHandler(ModelHandler[Batch, EmbeddedBatch, LazyModel]):
    """RunInference's way to our model: a `Batch` in, one `EmbeddedBatch` out."""

    def __init__(
        self,
        model: ModelSpec,
        dim: int,
        run: RunSpec,
        text_weight: float = 0.5,
        storage_options: StorageOptions | None = None,
        ledger: LedgerSpec | None = None,
        decode: ImageDecoder | None = None,
    ) -> None:
        super().__init__()
        self._decode = decode
        self._ledger = ledger
        self._spec = model
        self._dim = dim
        self._run = run
        self._text_weight = text_weight
        self._storage_options = storage_options or {}

    def load_model(self) -> LazyModel:
        """The way to the process's one copy of the model: Beam asks for it before any batch."""
        use_storage_options(self._storage_options)
        return LazyModel(self._spec)

    def run_inference(
        self,
        batch: Sequence[Batch],
        model: LazyModel,
        inference_args: Mapping[str, Any] | None = None,
    ) -> Iterable[EmbeddedBatch]:
        """Embed one batch; with `with_no_batching` what RunInference hands over is the `Batch`."""
        del inference_args
        assert isinstance(batch, Batch)
        decoded = self._decoded(batch, model)
        # Lists: RunInference times what it can count.
        if self._ledger is None:
            return [embed_batch(decoded, model, self._dim, self._run, self._text_weight)]
        known = shared_vectors(self._ledger)
        return [embed_once(decoded, model, self._dim, self._run, self._text_weight, known)]

    def _decoded(self, batch: Batch, model: LazyModel) -> Batch:
        if self._decode is None or not batch.encoded:
            return batch
        # Here, where it may be another machine than the one that the job was launched on.
        check_decode(self._decode.mode, self._spec)
        return decode_encoded(batch, self._decode, model.load().device)

    def get_num_bytes(self, batch: Sequence[Batch]) -> int:
        """The pixels' bytes; Beam's own answer pickles the whole batch to learn it."""
        assert isinstance(batch, Batch)
        return batch.pixels.nbytes

    def get_metrics_namespace(self) -> str:
        """Where RunInference's own metrics appear."""
        return "beamtag"

    def get_resource_hints(self) -> dict[str, Any]:
        """None: any hint makes a second environment and would send pixels through a shuffle."""
        return {}


@dataclass
class EmbedMedia(beam.PTransform[beam.PCollection[Batch], beam.PCollection[EmbeddedBatch]]):
    """Decoded batches to rows of `embeddings`; `dim` is the length of the model's vectors.

    `text_weight` (0 to 1) is the share of the text in an item of picture and text. Bytes that have
    a vector in the output of `ledger`, or had one made by this process, are not embedded again.
    `decode` is for pictures that come encoded.
    """

    model: ModelSpec
    dim: int
    run: RunSpec
    text_weight: float = 0.5
    storage_options: StorageOptions = field(default_factory=dict)
    ledger: LedgerSpec | None = None
    decode: ImageDecoder | None = None

    def expand(self, pcoll: beam.PCollection[Batch]) -> beam.PCollection[EmbeddedBatch]:
        """Wire RunInference."""
        handler = OpenClipHandler(
            self.model,
            self.dim,
            self.run,
            self.text_weight,
            self.storage_options,
            self.ledger,
            self.decode,
        )
        embedded: beam.PCollection[EmbeddedBatch] = pcoll | "RunInference" >> RunInference(
            handler.with_no_batching()
        )
        return embedded


@dataclass
class EmbedLabels(
    beam.PTransform[beam.PCollection[LabelSet], beam.PCollection[Mapping[str, LabelVectors]]]
):
    """Label sets to one mapping of their vectors by label-set id, computed once per run.

    `new_shards` counts the shards that are to be embedded: for none of them the text tower is
    enough, unless labels have example pictures (which `decode` and `limits` are for), and unless
    there is something `stored` to score, no vectors are needed at all. Shards that are not
    `embedded_here` do not need the image tower here either.
    """

    model: ModelSpec
    decode: ImageDecoder
    limits: ReadLimits
    new_shards: beam.PCollection[int]
    stored: bool = False
    storage_options: StorageOptions = field(default_factory=dict)
    embedded_here: bool = True

    def expand(
        self, pcoll: beam.PCollection[LabelSet]
    ) -> beam.PCollection[Mapping[str, LabelVectors]]:
        """Encode each set where a model is, and gather."""
        vectors: beam.PCollection[Mapping[str, LabelVectors]] = (
            pcoll
            | "EncodePrompts"
            >> beam.FlatMap(
                _encode_prompts,
                beam.pvalue.AsSingleton(self.new_shards),
                self.stored,
                self.embedded_here,
                partial(place_labels, spec=self.model, decode=self.decode, limits=self.limits),
                self.storage_options,
            )
            | "GatherLabelSets" >> beam.combiners.ToDict()
        )
        return vectors


def _encode_prompts(
    label_set: LabelSet,
    new_shards: int,
    stored: bool,
    embedded_here: bool,
    place: Callable[..., LabelVectors],
    storage_options: StorageOptions,
) -> Iterator[tuple[str, LabelVectors]]:
    if new_shards or stored:
        use_storage_options(storage_options)
        yield label_set.label_set_id, place(label_set, whole=embedded_here and bool(new_shards))
