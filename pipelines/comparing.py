"""What an evaluation compares: which model's answers of which items, found by what was told."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pipelines.groups import UsageError
from transforms.records import ModelSpec, ReadLimits

if TYPE_CHECKING:
    from transforms.answers import Answers
    from transforms.decoding import ImageDecoder
    from transforms.labels import LabelSet
    from transforms.modelstore import ModelInfo
    from transforms.truth import Truth

FOLDERS = "folders"
"""The truth that stands in the folders' names."""


def compared(
    options: argparse.Namespace, label_set: LabelSet
) -> tuple[str, LabelSet, Truth, Answers]:
    """The model, the label set with what it names, and what is to be compared.

    Raises `UsageError`, and what finding a model, a label file and a truth raise.
    """
    from transforms.truth import read_truth, stored_uris

    truth = None
    if options.truth != FOLDERS:
        # Before the model: a mistake in it is told at once.
        truth = read_truth(options.truth, label_set, unknown=options.unknown)
    if options.predictions:
        model_id, label_set = _stored(options, label_set)
    else:
        model_id, label_set = _scored(options, label_set)
    if truth is None:
        uris = stored_uris(options.output, model_id)
        truth = read_truth(FOLDERS, label_set, uris, options.unknown)
    answers = _answers(options, label_set, model_id, truth)
    if not answers.uris:
        example = next(iter(stored_uris(options.output, model_id)), None)
        has = "" if example is None else f", and the output {example}"
        raise UsageError(
            f"no item of {options.output} has truth: {options.truth} has "
            f"{next(iter(truth.labels))}{has}"
        )
    return model_id, label_set, truth, answers


def _answers(
    options: argparse.Namespace, label_set: LabelSet, model_id: str, truth: Truth
) -> Answers:
    from transforms.answers import from_tables, from_vectors

    if options.predictions:
        return from_tables(options.output, label_set, model_id, truth.labels)
    from transforms.examples import place_labels
    from transforms.latest import latest_vectors

    decode = _decoder(options, _described(options))
    labels = place_labels(label_set, _spec(options), decode, limits_of(options))
    return from_vectors(latest_vectors(options.output, model_id, truth.labels), labels)


def _stored(options: argparse.Namespace, label_set: LabelSet) -> tuple[str, LabelSet]:
    """Which model's predictions of a label set there are."""
    from transforms.stored import stored_files

    told = _described(options).model_id if options.model else None
    if label_set.examples or label_set.adapter:
        # What is in the files that it names is part of the set's id.
        label_set = _resolved(options, label_set, _described(options))
    files = list(stored_files(options.output, "predictions", label_set=label_set.label_set_id))
    models = sorted({file.model for file in files})
    what = f"predictions of {label_set.label_set_id}"
    if not models:
        others = sorted({file.label_set for file in stored_files(options.output, "predictions")})
        has = f"; it has those of {', '.join(others)}" if others else ""
        raise UsageError(
            f"{options.output} has no {what}{has} (rescore writes them; without --predictions none "
            "are needed)"
        )
    return _one_of(models, told, what, options.output), label_set


def _scored(options: argparse.Namespace, label_set: LabelSet) -> tuple[str, LabelSet]:
    """Which model's vectors there are."""
    from transforms.model import check_device
    from transforms.stored import stored_files

    models = sorted({file.model for file in stored_files(options.output, "embeddings")})
    if options.model is None and len(models) > 1:
        _one_of(models, None, "embeddings", options.output)
    info = _described(options)
    _one_of(models, info.model_id, "embeddings", options.output)
    check_device(_spec(options))
    if label_set.examples or label_set.adapter:
        label_set = _resolved(options, label_set, info)
    return info.model_id, label_set


def _one_of(models: Sequence[str], told: str | None, what: str, output: str) -> str:
    """The model that is told or, of at least one, the only one."""
    if told is None:
        if len(models) > 1:
            has = ", ".join(models)
            raise UsageError(f"{output} has {what} of several models: tell --model ({has})")
        return models[0]
    if told not in models:
        raise UsageError(
            f"{output} has no {what}"
            + (f" of {told}; it has those of {', '.join(models)}: tell --model" if models else "")
        )
    return told


def _spec(options: argparse.Namespace) -> ModelSpec:
    return ModelSpec(options.model or "demo", options.pretrained, options.device)


def _described(options: argparse.Namespace) -> ModelInfo:
    from transforms.modelstore import describe_model

    return describe_model(_spec(options))


def limits_of(options: argparse.Namespace) -> ReadLimits:
    """The flags of `add_limits`."""
    return ReadLimits(
        concurrency=options.read_concurrency,
        deadline_s=options.read_deadline,
        max_bytes=options.max_bytes,
        max_chars=options.max_chars,
    )


def _decoder(options: argparse.Namespace, info: ModelInfo) -> ImageDecoder:
    from transforms.decoding import ImageDecoder

    return ImageDecoder(info.preprocess, options.max_pixels, options.background)


def _resolved(options: argparse.Namespace, label_set: LabelSet, info: ModelInfo) -> LabelSet:
    from transforms.examples import resolve

    return resolve(label_set, _decoder(options, info), limits_of(options), info.model_id)
