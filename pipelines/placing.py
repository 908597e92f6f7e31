"""A label set in the space of the model that was told, for jobs that write no tables."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipelines.groups import UsageError, limits_of
from transforms.records import ModelSpec, ReadLimits

if TYPE_CHECKING:
    from transforms.decoding import ImageDecoder
    from transforms.labels import LabelSet
    from transforms.model import TextModel
    from transforms.modelstore import ModelInfo
    from transforms.records import LabelVectors


@dataclass(frozen=True, slots=True)
class Placing:
    """A model, and how the pictures that label sets name are read."""

    spec: ModelSpec
    info: ModelInfo
    decode: ImageDecoder
    limits: ReadLimits

    def resolve(self, label_set: LabelSet) -> LabelSet:
        """The set, the files that it names read and checked. Raises `LabelFileError`."""
        if not label_set.examples and label_set.adapter is None:
            return label_set
        from transforms.examples import resolve

        return resolve(label_set, self.decode, self.limits, self.info.model_id)

    def place(self, label_set: LabelSet) -> LabelVectors:
        """The label vectors of a set that `resolve` gave. Raises what `place_labels` raises."""
        from transforms.examples import place_labels

        return place_labels(label_set, self.spec, self.decode, self.limits)

    def text_model(self) -> TextModel:
        """The model's text half. Raises `ModelError`."""
        from transforms.model import shared_text_model

        return shared_text_model(self.spec)


def placing_of(options: argparse.Namespace, *, is_used: bool = True) -> Placing:
    """What the flags of `add_model` and `add_limits` tell, by default the demo model.

    Raises `ModelError`, also for an absent device unless the model is only asked for its name.
    """
    from transforms.decoding import ImageDecoder
    from transforms.model import check_device
    from transforms.modelstore import DEMO_MODEL, describe_model

    spec = ModelSpec(options.model or DEMO_MODEL, options.pretrained, options.device)
    info = describe_model(spec)
    if is_used:
        check_device(spec)
    decode = ImageDecoder(info.preprocess, options.max_pixels, options.background)
    return Placing(spec, info, decode, limits_of(options))


def check_stored(output: str, model_id: str, hint: str = ": tell --model") -> None:
    """Raise `UsageError` where an output has no vectors of a model; the `hint` is for others'."""
    from transforms.stored import stored_files

    if any(True for _ in stored_files(output, "embeddings", model=model_id)):
        return
    has = sorted({file.model for file in stored_files(output, "embeddings")})
    raise UsageError(
        f"{output} has no embeddings of {model_id}"
        + (f"; it has those of {', '.join(has)}{hint}" if has else "")
    )
