"""A tag job's time and cost, before it is run: from a sample of its input that is really tagged."""

from __future__ import annotations

import argparse
import datetime
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pipelines import checks
from pipelines.analysing import main as run_main
from pipelines.analysing import refuse, usage_errors
from pipelines.flags import add_inputs, add_work
from pipelines.groups import Parser, add_labels, add_printing, add_storage_options
from pipelines.options import TagSpec, tag_spec
from pipelines.running import ended_by_sigterm, record_header, resolved

if TYPE_CHECKING:
    from transforms.estimating import Fixed, Point, Range, TarRead
    from transforms.modelstore import ModelInfo
    from transforms.records import Shard
    from transforms.sampling import Sample

TARS = 8
"""How many tars a sample is taken from at most: of each its first samples."""

EPILOG = """\
Nothing is written but a folder of this machine that is removed again. docs/estimate.md says how the
sample is chosen and what the range means.

exit status:
  0  the estimate is printed
  1  there is nothing to measure, or the sample cannot be tagged
  2  bad usage, said in one line before any work

example:
  beamtag estimate --input='gs://bucket/archive/**/*.jpg' --labels=labels.yaml --model=ViT-B-32 \\
      --pretrained=laion2b_s34b_b79k --items=10000000 --price_per_hour=2.50
"""


def parser(prog: str = "beamtag estimate") -> Parser:
    """The parser of the estimate job."""
    parser = Parser(prog, "Say what tagging would take, from a sample that is tagged.", EPILOG)
    group = parser.add_argument_group("what would be tagged")
    add_inputs(group)
    add_labels(group, required=False)
    add_storage_options(group)
    group = parser.add_argument_group("the estimate")
    group.add_argument(
        "--sample",
        type=checks.positive,
        default=500,
        metavar="N",
        help="items that are really tagged (default: %(default)s)",
    )
    group.add_argument(
        "--items",
        type=checks.positive,
        metavar="N",
        help="also estimate so many items like these, such as 10000000",
    )
    group.add_argument(
        "--workers",
        type=checks.positive,
        default=1,
        metavar="N",
        help="machines like this one that share the work (default: %(default)s)",
    )
    group.add_argument(
        "--price_per_hour",
        type=checks.price,
        metavar="PRICE",
        help="of one of them, in any currency",
    )
    add_work(parser)
    add_printing(parser.add_argument_group("what is printed"))
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job; gives the exit status: 0 estimated, 1 failed, 2 bad usage."""
    # What of the tag job's options this one does not have.
    told = argparse.Namespace(
        output=None,
        run_date=None,
        retry="none",
        max_failures=None,
        prune=False,
        take_over=False,
        detach=False,
        explain=False,
        runner="FnApiRunner",
    )
    return run_main("estimate", argv, parser(), _run, told)


def _run(options: argparse.Namespace) -> int:
    from transforms.lightimports import import_beam

    started = time.time()
    import_beam()
    options.labels = options.labels or ["everyday"]
    with ended_by_sigterm(), tempfile.TemporaryDirectory(prefix="beamtag-estimate-") as folder:
        options.output = folder
        with usage_errors():
            # A worker's pace is measured, by one.
            alone = argparse.Namespace(**{**vars(options), "workers": 1})
            spec, model = _checked(tag_spec(alone))
        found = _listed(spec, options.sample)
        if not found.shards(spec, model):
            refuse("estimate", f"nothing to tag in {', '.join(given.url for given in spec.inputs)}")
            return 1
        tagged = _tag(spec, model, found, shown=not (options.quiet or options.json))
        if not tagged.record["counts"]["embedded"]:
            reasons = ", ".join(tagged.record["failures"]) or "no item in them"
            refuse("estimate", f"nothing of the sample can be embedded: {reasons}")
            return 1
        _print(_estimated(options, found, tagged, started), options)
    return 0


def _checked(spec: TagSpec) -> tuple[TagSpec, ModelInfo]:
    """The job, its inputs and its model looked at; the model is loaded."""
    from pipelines.tag import check_inputs
    from transforms.model import check_device, shared_model
    from transforms.modelstore import describe_model

    check_inputs(spec)
    model = describe_model(spec.model)
    check_device(spec.model)
    spec = resolved(spec, model)
    shared_model(spec.model)
    return spec, model


class _Listed(NamedTuple):
    """What the inputs have, and of it what is tagged; of each of `tars` the first so many items."""

    media: Sample
    tars: Sample
    of_each_tar: int
    seconds: float

    def shards(self, spec: TagSpec, model: ModelInfo) -> list[Shard]:
        from transforms.listing import make_shard

        refs = self.media.refs
        parts = [refs[at : at + spec.shard_size] for at in range(0, len(refs), spec.shard_size)]
        tars = [replace(make_shard([ref], model.model_id), tar=True) for ref in self.tars.refs]
        return [*(make_shard(part, model.model_id) for part in parts), *tars]


def _listed(spec: TagSpec, size: int) -> _Listed:
    """List all inputs once; of inputs that have tars and others, half of the sample is of tars."""
    from pipelines.inputs import listed
    from transforms.sampling import Sample

    kinds = {given.kind for given in spec.inputs}
    of_tars = 0 if "tar" not in kinds else size if len(kinds) == 1 else size // 2
    media, tars = Sample(max(1, size - of_tars)), Sample(TARS)
    started = time.perf_counter()
    for given in spec.inputs:
        refs = listed(given, spec.selection, spec.run.carry)
        (tars if given.kind == "tar" else media).add(refs)
    seconds = time.perf_counter() - started
    each = max(1, round(of_tars / max(1, len(tars.refs))))
    return _Listed(media, tars, each, seconds)


class _Tagged(NamedTuple):
    """What tagging the sample gave: its run's record, and when batches were finished."""

    record: dict[str, Any]
    points: list[Point]


def _tag(spec: TagSpec, model: ModelInfo, found: _Listed, *, shown: bool) -> _Tagged:
    import apache_beam as beam
    from apache_beam.runners.portability.fn_api_runner import FnApiRunner

    from pipelines.graph import build_sample
    from pipelines.report import live_progress
    from pipelines.tag import SETTINGS
    from transforms.estimating import Pace
    from transforms.progress import progress

    url = f"{spec.run.output}/runs/{spec.run.run_id}.json"
    header = record_header(spec, model, SETTINGS)
    pipeline = beam.Pipeline(runner=FnApiRunner())
    shards = found.shards(spec, model)
    build_sample(pipeline, spec, model, url, header, shards, found.of_each_tar)
    progress.reset()
    progress.add(listed=len(found.media.refs))
    with live_progress(shown=shown), Pace() as pace:
        pipeline.run().wait_until_finish()
    return _Tagged(json.loads(Path(url).read_text()), pace.points)


def _estimated(
    options: argparse.Namespace, found: _Listed, tagged: _Tagged, started: float
) -> dict[str, Any]:
    """All that is printed, as `--json` has it."""
    from transforms.bottleneck import find_bottleneck, run_of
    from transforms.estimating import Fixed, item_seconds, items_in_tars, writing_seconds
    from transforms.utilisation import device_in_use

    record = tagged.record
    device = device_in_use(options.device)
    began = datetime.datetime.fromisoformat(record["started_at"]).timestamp()
    began += record["startup_seconds"]
    pace = item_seconds(began, tagged.points, apart=device == "cuda")
    pace = pace.times(1, writing_seconds(record))
    counts = record["counts"]
    in_sample = counts["embedded"] + counts["failed"]
    items = found.media.items + items_in_tars(found.tars.bytes, _tars_read(found, record))
    media_bytes = found.media.bytes
    if found.media.unsized:
        media_bytes = round(found.media.items * record["bytes"] / counts["embedded"])
    fixed = Fixed(began - started - found.seconds, found.seconds / max(1, items))
    written = sum(os.path.getsize(file) for file in record["files"]) / in_sample
    bottleneck = find_bottleneck(run_of(record, device)._replace(startup=0.0))
    return {
        "inputs": options.input,
        "model_id": record["model_id"],
        "listed": {
            "items": items,
            "bytes": media_bytes + found.tars.bytes,
            "tars": found.tars.items,
            "exact": not (found.tars.items or found.media.unsized),
            "seconds": round(found.seconds, 3),
        },
        "sample": {
            "items": in_sample,
            "failed": counts["failed"],
            "seconds": round(record["wall_seconds"] - record["startup_seconds"], 3),
        },
        "startup_seconds": round(fixed.startup_s, 3),
        "items_per_second": {
            "likely": round(1 / pace.likely, 2),
            "least": round(1 / pace.most, 2),
            "most": round(1 / pace.least, 2),
        },
        "stages": record["stages"],
        "bottleneck": bottleneck and {"kind": bottleneck.kind, "sentence": bottleneck.sentence},
        "workers": options.workers,
        "price_per_hour": options.price_per_hour,
        "estimates": [
            _of_items(each, fixed, pace, written, options)
            for each in dict.fromkeys([items, *([options.items] if options.items else [])])
        ],
    }


def _of_items(
    items: int, fixed: Fixed, pace: Range, bytes_an_item: float, options: argparse.Namespace
) -> dict[str, Any]:
    from transforms.estimating import run_seconds

    seconds = run_seconds(items, fixed, pace, options.workers)
    cost = None
    if options.price_per_hour is not None:
        cost = seconds.times(options.workers * options.price_per_hour / 3600).told(4)
    return {
        "items": items,
        "seconds": seconds.told(3),
        "cost": cost,
        "output_bytes": round(items * bytes_an_item),
    }


def _tars_read(found: _Listed, record: dict[str, Any]) -> list[TarRead]:
    """What the sample had of each of its tars, by what was written of it."""
    import pyarrow.parquet as pq

    from transforms.estimating import TarRead

    sizes: dict[str, list[int]] = {ref.uri: [] for ref in found.tars.refs}
    for file in record["files"] if sizes else ():
        table = file.removeprefix(record["output"]).split("/")[1]
        if table == "predictions":
            continue
        for row in pq.ParquetFile(file).read().to_pylist():
            uri = row["uri"].rpartition("#")[0]
            if uri in sizes:
                sizes[uri].append(row.get("bytes", 0))
    return [
        TarRead(ref.size or 0, len(found_in), sum(found_in), len(found_in) < found.of_each_tar)
        for ref, found_in in zip(found.tars.refs, sizes.values(), strict=True)
    ]


def _print(told: dict[str, Any], options: argparse.Namespace) -> None:
    if options.json:
        json.dump(told, sys.stdout, indent=2)
        sys.stdout.write("\n")
    elif not options.quiet:
        from rich.console import Console

        from pipelines.estimatetext import summarize

        summarize(told, Console(highlight=False))


if __name__ == "__main__":
    sys.exit(main())
