"""What an evaluation compares: which model's answers of which items, found by what was told."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pipelines import checks
from pipelines.groups import UsageError
from pipelines.placing import Placing, placing_of

if TYPE_CHECKING:
    from transforms.answers import Answers
    from transforms.labels import LabelSet
    from transforms.truth import Truth

FOLDERS = "folders"
"""The truth that stands in the folders' names; as in `transforms.truth`, which waits for Arrow."""


def truth_source(text: str) -> str:
    """A table's URL, or `FOLDERS`."""
    return text if text == FOLDERS else checks.url(text)


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
    placing = None
    if options.predictions:
        model_id, label_set = _stored(options, label_set)
    else:
        placing = _scored(options)
        model_id, label_set = placing.info.model_id, placing.resolve(label_set)
    if truth is None:
        uris = stored_uris(options.output, model_id)
        truth = read_truth(FOLDERS, label_set, uris, options.unknown)
    # Not before: this waits for Beam.
    from transforms.answers import from_tables, from_vectors
    from transforms.latest import latest_vectors

    if placing is None:
        answers = from_tables(options.output, label_set, model_id, truth.labels)
    else:
        vectors = latest_vectors(options.output, model_id, truth.labels)
        answers = from_vectors(vectors, placing.place(label_set))
    if not answers.uris:
        raise without_truth(options, model_id, truth)
    return model_id, label_set, truth, answers


def without_truth(options: argparse.Namespace, model_id: str, truth: Truth) -> UsageError:
    """That truth and output have no item in common, with one of each."""
    from transforms.truth import stored_uris

    example = next(iter(stored_uris(options.output, model_id)), None)
    has = "" if example is None else f", and the output {example}"
    return UsageError(
        f"no item of {options.output} has truth: {options.truth} has "
        f"{next(iter(truth.labels))}{has}"
    )


def _stored(options: argparse.Namespace, label_set: LabelSet) -> tuple[str, LabelSet]:
    """Which model's predictions of a label set there are."""
    from transforms.stored import stored_files

    told = placing_of(options, is_used=False).info.model_id if options.model else None
    if label_set.examples or label_set.adapter:
        # What is in the files that it names is part of the set's id.
        label_set = placing_of(options, is_used=False).resolve(label_set)
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


def _scored(options: argparse.Namespace) -> Placing:
    """The model whose vectors there are."""
    from transforms.stored import stored_files

    models = sorted({file.model for file in stored_files(options.output, "embeddings")})
    if options.model is None and len(models) > 1:
        _one_of(models, None, "embeddings", options.output)
    placing = placing_of(options)
    _one_of(models, placing.info.model_id, "embeddings", options.output)
    return placing


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
