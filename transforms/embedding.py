"""EmbedMedia: decoded batches through Beam's RunInference with our model handler; no maths.

EmbedLabels: the words, once per run.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import apache_beam as beam
from apache_beam.ml.inference.base import ModelHandler, RunInference

from transforms.encoding import embed_batch, label_vectors
from transforms.labels import LabelSet
from transforms.model import OpenClipModel, shared_model
from transforms.records import Batch, EmbeddedBatch, LabelVectors, ModelSpec, RunSpec
from transforms.storage import StorageOptions, use_storage_options


class OpenClipHandler(ModelHandler[Batch, EmbeddedBatch, OpenClipModel]):
    """RunInference's way to our model: a `Batch` in, one `EmbeddedBatch` out."""

    def __init__(
        self,
        model: ModelSpec,
        dim: int,
        run: RunSpec,
        text_weight: float = 0.5,
        storage_options: StorageOptions | None = None,
    ) -> None:
        super().__init__()
        self._spec = model
        self._dim = dim
        self._run = run
        self._text_weight = text_weight
        self._storage_options = storage_options or {}

    def load_model(self) -> OpenClipModel:
        """The process's one copy of the model."""
        use_storage_options(self._storage_options)
        return shared_model(self._spec)

    def run_inference(
        self,
        batch: Sequence[Batch],
        model: OpenClipModel,
        inference_args: Mapping[str, Any] | None = None,
    ) -> Iterable[EmbeddedBatch]:
        """Embed one batch; with `with_no_batching` what RunInference hands over is the `Batch`."""
        del inference_args
        assert isinstance(batch, Batch)
        # A list: RunInference times what it can count.
        return [embed_batch(batch, model, self._dim, self._run, self._text_weight)]

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

    `text_weight` (0 to 1) is the share of the text in an item of picture and text.
    """

    model: ModelSpec
    dim: int
    run: RunSpec
    text_weight: float = 0.5
    storage_options: StorageOptions = field(default_factory=dict)

    def expand(self, pcoll: beam.PCollection[Batch]) -> beam.PCollection[EmbeddedBatch]:
        """Wire RunInference."""
        handler = OpenClipHandler(
            self.model, self.dim, self.run, self.text_weight, self.storage_options
        )
        embedded: beam.PCollection[EmbeddedBatch] = pcoll | "RunInference" >> RunInference(
            handler.with_no_batching()
        )
        return embedded


@dataclass
class EmbedLabels(
    beam.PTransform[beam.PCollection[LabelSet], beam.PCollection[Mapping[str, LabelVectors]]]
):
    """Label sets to one mapping of their vectors by label-set id, computed once per run."""

    model: ModelSpec
    storage_options: StorageOptions = field(default_factory=dict)

    def expand(
        self, pcoll: beam.PCollection[LabelSet]
    ) -> beam.PCollection[Mapping[str, LabelVectors]]:
        """Encode each set where a model is, and gather."""
        vectors: beam.PCollection[Mapping[str, LabelVectors]] = (
            pcoll
            | "EncodePrompts" >> beam.ParDo(_EncodePrompts(self.model, self.storage_options))
            | "GatherLabelSets" >> beam.combiners.ToDict()
        )
        return vectors


class _EncodePrompts(beam.DoFn):
    """A DoFn for the model's sake: it is loaded where the prompts are encoded."""

    def __init__(self, model: ModelSpec, storage_options: StorageOptions) -> None:
        self._spec = model
        self._storage_options = storage_options

    def setup(self) -> None:
        use_storage_options(self._storage_options)
        self._model = shared_model(self._spec)

    def process(self, label_set: LabelSet) -> Iterable[tuple[str, LabelVectors]]:
        yield label_set.label_set_id, label_vectors(label_set, self._model)
