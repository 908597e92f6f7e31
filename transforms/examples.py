"""Label sets and the files that they name, to label vectors: pictures embedded, adapters read."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from transforms.adapters import Adapter, AdapterError, parse_adapter
from transforms.decoding import ImageDecoder
from transforms.encoding import Encoder
from transforms.items import Item, ItemReader
from transforms.labelfile import LabelFileError
from transforms.labels import LabelSet, Resource
from transforms.labelvectors import label_vectors
from transforms.model import shared_model, shared_text_model
from transforms.records import (
    DecodedMedia,
    Failure,
    LabelVectors,
    MediaRef,
    ModelSpec,
    ReadLimits,
)
from transforms.storage import read_object

READ_AT_ONCE = 16
EMBEDDED_AT_ONCE = 64
"""How many example pictures the model sees at a time."""

Vectors = npt.NDArray[np.float32]


def resolve(
    label_set: LabelSet, decode: ImageDecoder, limits: ReadLimits, model_id: str
) -> LabelSet:
    """The set with the digest of each file that it names, all of which were read and can be used.

    Raises `LabelFileError` with every one that cannot, each with its line.
    """
    mistakes: list[str] = []
    seen: dict[Resource, Resource] = {}
    for example, item in _read(label_set.examples, decode, limits):
        outcome = item.outcome
        if isinstance(outcome, DecodedMedia) and item.pixels is not None:
            seen[example] = replace(example, sha256=outcome.content_sha256)
        else:
            why = (
                f"{outcome.reason}: {outcome.message}"
                if isinstance(outcome, Failure)
                else "it is no picture"
            )
            mistakes.append(f"{example.where}: example {example.uri} cannot be used: {why}")
    adapter = label_set.adapter
    if adapter is not None:
        try:
            content = read_object(adapter.uri)
            parse_adapter(content, model_id)
            adapter = replace(adapter, sha256=hashlib.sha256(content).hexdigest())
        except AdapterError as error:
            mistakes.append(f"{adapter.where}: adapter {adapter.uri} cannot be used: {error}")
        # Any store's client, any error of its own.
        except Exception as error:
            said = " ".join(f"{type(error).__name__}: {error}".split())
            mistakes.append(f"{adapter.where}: cannot read adapter {adapter.uri}: {said}")
    if mistakes:
        raise LabelFileError(mistakes)
    labels = tuple(
        replace(label, examples=tuple(seen[example] for example in label.examples))
        for label in label_set.labels
    )
    return replace(label_set, labels=labels, adapter=adapter)


def embed_examples(
    label_set: LabelSet, model: Encoder, decode: ImageDecoder, limits: ReadLimits
) -> Mapping[Resource, Vectors]:
    """The vectors `float32[D]` of a set's example pictures.

    Raises `LabelFileError` for one that is gone, or is not what it was when the run began.
    """
    found: dict[Resource, Vectors] = {}
    waiting: list[tuple[Resource, npt.NDArray[np.uint8]]] = []
    for example, item in _read(label_set.examples, decode, limits):
        outcome, pixels = item.outcome, item.pixels
        if not isinstance(outcome, DecodedMedia) or pixels is None:
            raise LabelFileError(
                [f"{example.where}: example {example.uri} cannot be read any more"]
            )
        if example.sha256 and outcome.content_sha256 != example.sha256:
            raise LabelFileError([f"{example.where}: example {example.uri} has changed meanwhile"])
        waiting.append((example, pixels))
        if len(waiting) == EMBEDDED_AT_ONCE:
            found.update(_embedded(waiting, model))
            waiting.clear()
    if waiting:
        found.update(_embedded(waiting, model))
    return found


def place_labels(
    label_set: LabelSet,
    spec: ModelSpec,
    decode: ImageDecoder,
    limits: ReadLimits,
    *,
    whole: bool = False,
) -> LabelVectors:
    """A label set in a model's space, by its text tower alone where that is enough.

    With `whole` the model is needed anyway. Raises `ModelError`, `AdapterError`, `LabelFileError`
    and ValueError, as what it calls.
    """
    examples = None
    if label_set.examples:
        examples = embed_examples(label_set, shared_model(spec), decode, limits)
    model = shared_model(spec) if whole else shared_text_model(spec)
    adapter = read_adapter(label_set, model.info.model_id)
    return label_vectors(label_set, model, examples, adapter)


def _embedded(
    pictures: Sequence[tuple[Resource, npt.NDArray[np.uint8]]], model: Encoder
) -> Iterable[tuple[Resource, Vectors]]:
    vectors = model.encode_images(np.stack([pixels for _, pixels in pictures]))
    return zip((example for example, _ in pictures), vectors, strict=True)


def _read(
    examples: Sequence[Resource], decode: ImageDecoder, limits: ReadLimits
) -> Iterable[tuple[Resource, Item]]:
    """Each file once, in order."""
    distinct = list(dict.fromkeys(examples))
    if not distinct:
        return
    reader = ItemReader(decode, limits)
    with ThreadPoolExecutor(READ_AT_ONCE, thread_name_prefix="beamtag-examples") as pool:
        items = pool.map(lambda example: reader.read(MediaRef(example.uri, "")), distinct)
        yield from zip(distinct, items, strict=True)


def read_adapter(label_set: LabelSet, model_id: str) -> Adapter | None:
    """What a set names as its adapter. Raises `AdapterError` and what the store raises."""
    if label_set.adapter is None:
        return None
    content = read_object(label_set.adapter.uri)
    if label_set.adapter.sha256 not in ("", hashlib.sha256(content).hexdigest()):
        raise AdapterError(f"{label_set.adapter.uri} has changed meanwhile")
    return parse_adapter(content, model_id)
