"""The tag job's graph: the one place that composes the stages."""

from __future__ import annotations

import dataclasses
import pickle
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import apache_beam as beam

from pipelines.options import JobSpec, TagSpec
from transforms.accounting import Account
from transforms.decoding import ImageDecoder
from transforms.embedding import EmbedLabels, EmbedMedia
from transforms.handing import InWorkers
from transforms.ledger import LedgerSpec, Unscored, shared_ledger, unscored_files
from transforms.listing import CutShards, GroupIntoShards, ListManifests, ListMedia, ListTars
from transforms.model import worker_gpus
from transforms.reading import ReadMedia
from transforms.recording import WriteRunRecord
from transforms.records import Shard
from transforms.rescoring import ReadStored
from transforms.scoring import ScoreLabels
from transforms.skipping import ACCOUNTS, JoinDone, SkipDone, SkipDoneTars
from transforms.stored import stored_files
from transforms.writing import WriteShards

if TYPE_CHECKING:
    from transforms.modelstore import ModelInfo

WORKER = "pipelines.working"
"""The module of which each of several `--workers` is a process."""


def build(
    pipeline: beam.Pipeline,
    spec: TagSpec,
    model: ModelInfo,
    record_url: str,
    header: dict[str, Any],
) -> None:
    """Wire the job: what is listed and not done is grouped, then all the rest is one fused stage.

    Looks at what the output holds: that is what this run reuses, whatever is written meanwhile.
    """
    stores, run = spec.storage_options, spec.run
    ledger = LedgerSpec(run.output, model.model_id, spec.retry, run.run_id)
    unscored = unscored_files(run.output, model.model_id, list(header["label_sets"]))

    shards, skipped = _new_shards(pipeline, spec, ledger)
    if spec.workers > 1:
        named_by = (f"{model.model_id}/cut", run.run_id, _taken(spec, ledger))
        shards = shards | "CutShards" >> CutShards(spec.workers, named_by)
    new_shards = shards | "CountShards" >> beam.combiners.Count.Globally()
    label_vectors = _label_vectors(
        pipeline,
        spec,
        model,
        new_shards,
        stored=bool(unscored),
        embedded_here=spec.workers == 1,
    )
    written = _written(shards, spec, model, label_vectors, ledger)
    scored = _scored(pipeline, spec, model, unscored, label_vectors)
    _ = (
        (skipped, shards | "AccountShards" >> beam.Map(_account_of), written, scored)
        | "Accounts" >> beam.Flatten()
        | "WriteRunRecord"
        >> WriteRunRecord(record_url, header, stores, spec.max_failures, gives_back=spec.detach)
    )


def build_sample(
    pipeline: beam.Pipeline,
    spec: TagSpec,
    model: ModelInfo,
    record_url: str,
    header: dict[str, Any],
    sample: Sequence[Shard],
    samples_of_tar: int,
) -> None:
    """Wire the tag job from its shards on, for these few; of each tar so many samples are read."""
    shards = pipeline | "Shards" >> beam.Create(sample)
    new_shards = shards | "CountShards" >> beam.combiners.Count.Globally()
    label_vectors = _label_vectors(pipeline, spec, model, new_shards, stored=False)
    written = _written(shards, spec, model, label_vectors, None, samples_of_tar)
    listed = sum(len(shard.refs) for shard in sample if not shard.tar)
    _ = (
        (pipeline | "Listed" >> beam.Create([Account(listed=listed)]), written)
        | "Accounts" >> beam.Flatten()
        | "WriteRunRecord" >> WriteRunRecord(record_url, header, spec.storage_options)
    )


def _written(
    shards: Any,
    spec: TagSpec,
    model: ModelInfo,
    label_vectors: Any,
    ledger: LedgerSpec | None,
    samples_of_tar: int | None = None,
) -> Any:
    """Accounts of shards: each is done by one worker, of a runner or of this process."""
    shuffled = shards | "ShuffleShards" >> beam.Reshuffle()
    if spec.workers == 1:
        return tagged(shuffled, spec, model, label_vectors, ledger, samples_of_tar)
    # Who counts failures is the one who hears of all of them.
    order = pickle.dumps((dataclasses.replace(spec, max_failures=None), model, ledger))
    gpus = worker_gpus(spec.model, spec.workers)
    return shuffled | "InWorkers" >> InWorkers(
        spec.workers, WORKER, order, label_vectors, gpus, spec.abort_after
    )


def tagged(
    shards: Any,
    spec: TagSpec,
    model: ModelInfo,
    label_vectors: Any,
    ledger: LedgerSpec | None,
    samples_of_tar: int | None = None,
) -> Any:
    """Accounts of shards: each is read, embedded, scored and written, in one fused stage."""
    stores, run = spec.storage_options, spec.run
    decoder = ImageDecoder(model.preprocess, spec.max_pixels, spec.background, spec.decode)
    return (
        shards
        | "ReadMedia"
        >> ReadMedia(
            decoder,
            spec.limits,
            spec.batch_size,
            spec.shard_size,
            run.run_id,
            run.carry,
            stores,
            ledger,
            joined=not spec.is_local,
            samples_of_tar=samples_of_tar,
            processes=spec.workers,
        )
        | "EmbedMedia"
        >> EmbedMedia(spec.model, model.dim, run, spec.text_weight, stores, ledger, decoder)
        | "ScoreLabels" >> ScoreLabels(label_vectors, run)
        | "WriteShards" >> WriteShards(run, model.model_id, stores, ledger, spec.abort_after)
    )


def build_rescore(
    pipeline: beam.Pipeline,
    spec: JobSpec,
    model: ModelInfo,
    record_url: str,
    header: dict[str, Any],
    *,
    again: bool,
) -> None:
    """Wire the rescore job: of the tag job the part from stored vectors on.

    With `again` also the files that have predictions of the label sets.
    """
    output, label_sets = spec.run.output, list(header["label_sets"])
    unscored = unscored_files(output, model.model_id, label_sets, again=again)
    none_new = pipeline | "NewShards" >> beam.Create([0])
    label_vectors = _label_vectors(pipeline, spec, model, none_new, stored=bool(unscored))
    accounts = _scored(pipeline, spec, model, unscored, label_vectors)
    _ = accounts | "WriteRunRecord" >> WriteRunRecord(
        record_url, header, spec.storage_options, gives_back=spec.detach
    )


def _label_vectors(
    pipeline: beam.Pipeline,
    spec: JobSpec,
    model: ModelInfo,
    new_shards: Any,
    *,
    stored: bool,
    embedded_here: bool = True,
) -> Any:
    decoder = ImageDecoder(model.preprocess, spec.max_pixels, spec.background)
    return (
        pipeline
        | "LabelSets" >> beam.Create(spec.label_sets)
        | "EmbedLabels"
        >> EmbedLabels(
            spec.model,
            decoder,
            spec.limits,
            new_shards,
            stored,
            spec.storage_options,
            embedded_here,
        )
    )


def _scored(
    pipeline: beam.Pipeline,
    spec: JobSpec,
    model: ModelInfo,
    unscored: Sequence[Unscored],
    label_vectors: Any,
) -> Any:
    return (
        pipeline
        | "Unscored" >> beam.Create(unscored)
        | "ReadStored" >> ReadStored(spec.storage_options)
        | "ScoreStored" >> ScoreLabels(label_vectors, spec.run)
        | "WriteScored" >> WriteShards(spec.run, model.model_id, spec.storage_options)
    )


def _new_shards(pipeline: beam.Pipeline, spec: TagSpec, ledger: LedgerSpec) -> tuple[Any, Any]:
    """What is to be done, in shards, and the accounts of what was listed."""
    stores, run_id = spec.storage_options, spec.run.run_id
    inputs = pipeline | "Inputs" >> beam.Create([spec.inputs])
    objects = inputs | "ListMedia" >> ListMedia(spec.selection, stores)
    rows = inputs | "ListManifests" >> ListManifests(spec.run.carry, stores)
    tars = inputs | "ListTars" >> ListTars(ledger.model_id, stores)
    taken = _taken(spec, ledger)
    group = GroupIntoShards(spec.shard_size, ledger.model_id, run_id, taken)
    group_rows = GroupIntoShards(spec.shard_size, f"{ledger.model_id}/rows", run_id, taken)
    if not spec.is_local:
        embedded = stored_files(ledger.output, "embeddings", model=ledger.model_id)
        files = [*embedded, *stored_files(ledger.output, "failures")]
        joined = {
            "listed": (objects, rows) | "Listed" >> beam.Flatten(),
            "tars": tars,
            "files": pipeline | "StoredFiles" >> beam.Create(files),
        } | "JoinDone" >> JoinDone(ledger, stores)
        shards = (joined["new"] | "GroupIntoShards" >> group, joined["new_tars"])
        return shards | "Shards" >> beam.Flatten(), joined[ACCOUNTS]
    # Before anything is written that it would find.
    shared_ledger(ledger)
    new_objects = objects | "SkipDone" >> SkipDone(ledger, stores)
    new_rows = rows | "SkipDoneRows" >> SkipDone(ledger, stores)
    new_tars = tars | "SkipDoneTars" >> SkipDoneTars(ledger, stores)
    # Grouped before they come together: a local runner keeps what goes into a Flatten.
    shards = (
        new_objects.new | "GroupIntoShards" >> group,
        new_rows.new | "GroupRows" >> group_rows,
        new_tars.new,
    ) | "Shards" >> beam.Flatten()
    accounts = (
        new_objects[ACCOUNTS],
        new_rows[ACCOUNTS],
        new_tars[ACCOUNTS],
    ) | "ListedAccounts" >> beam.Flatten()
    return shards, accounts


def _taken(spec: TagSpec, ledger: LedgerSpec) -> frozenset[str]:
    """Today's shards of this model: what it has made of the same references stays as it is."""
    today = stored_files(ledger.output, "embeddings", model=ledger.model_id, dt=spec.run.run_date)
    return frozenset(file.shard_id for file in today)


def _account_of(shard: Shard) -> Account:
    """What a shard is to come to; what is in a tar is found, and counted, by reading it."""
    return Account(shards={} if shard.tar else {shard.shard_id: len(shard.refs)})
