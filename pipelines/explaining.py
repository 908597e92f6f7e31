"""`--explain`: what a job was told and by whom, its graph and its files; nothing runs."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from typing import Any

import apache_beam as beam
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from rich.console import Console
from rich.text import Text

from pipelines.config import DEFAULT, Told
from pipelines.graphview import steps_of
from pipelines.options import JobSpec, TagSpec
from pipelines.terminal import as_is, masked, table

PIXELS = ("ReadMedia", "EmbedMedia")
"""The steps that make and take pixels."""


def explain(
    spec: JobSpec, header: dict[str, Any], build: Callable[[beam.Pipeline, str], None]
) -> int:
    """Print the resolved job; gives the exit status.

    The graph is built as for the run, from what the output holds now, without the runner's own
    options: some runners look for buckets, or make them, when they read those.
    """
    told = explanation(spec, header, build)
    if spec.json:
        print(json.dumps(told, indent=2, ensure_ascii=False))  # noqa: T201
    else:
        _show(told, Console(highlight=False))
    return 0


def explanation(
    spec: JobSpec, header: dict[str, Any], build: Callable[[beam.Pipeline, str], None]
) -> dict[str, Any]:
    """The resolved job as JSON has it; passwords and the stores' arguments stay unsaid."""
    record_url = f"{spec.run.output}/runs/{spec.run.run_id}.json"
    pipeline = beam.Pipeline(runner=FnApiRunner())
    build(pipeline, record_url)
    steps = steps_of(pipeline)
    inputs = spec.inputs if isinstance(spec, TagSpec) else ()
    dt, model = f"dt={spec.run.run_date}", f"model={header['model_id']}"
    tables = [f"embeddings/{model}/{dt}", f"failures/{dt}"] if inputs else []
    # What is stored already gets its predictions beside it.
    tables += [
        f"predictions/label_set={label_set_id}/{model}/{dt if inputs else 'dt=*'}"
        for label_set_id in header["label_sets"]
    ]
    return {
        "options": [
            {"name": told.name, "values": _shown(told), "from": told.where} for told in spec.told
        ],
        "runner": spec.runner,
        "inputs": [{"url": masked(given.url), "kind": given.kind} for given in inputs],
        "label_sets": {
            label_set.label_set_id: {
                "labels": len(label_set.labels),
                "activation": label_set.activation,
                "top_k": label_set.top_k,
                "threshold": label_set.threshold,
            }
            for label_set in spec.label_sets
        },
        "model_id": header["model_id"],
        "graph": [dataclasses.asdict(step) for step in steps],
        "pixels_in": sorted(
            {number for step in steps if step.label in PIXELS for number in step.passes}
        ),
        "writes": [f"{spec.run.output}/{table}/shard-*.parquet" for table in tables] + [record_url],
    }


def _shown(told: Told) -> list[str]:
    if told.name == "storage_options" and told.where != DEFAULT:
        stores = {
            store: dict.fromkeys(arguments, "***")
            for text in told.values
            for store, arguments in json.loads(text).items()
        }
        return [json.dumps(stores)]
    return [masked(value) for value in told.values]


def _show(told: dict[str, Any], console: Console) -> None:
    options = table("option", "value", "from", words=3)
    for option in told["options"]:
        options.add_row(
            as_is(option["name"]), as_is(", ".join(option["values"]) or "-"), as_is(option["from"])
        )
    console.print(options)
    console.print()
    for name, kind in ((given["url"], given["kind"]) for given in told["inputs"]):
        console.print(as_is(f"input      {name} ({kind})"), soft_wrap=True)
    for label_set_id, label_set in told["label_sets"].items():
        least = "" if label_set["threshold"] is None else f", scores from {label_set['threshold']}"
        line = f"{label_set['labels']} labels, {label_set['activation']}, top {label_set['top_k']}"
        console.print(Text(f"label set  {label_set_id} ({line}{least})"), soft_wrap=True)
    console.print(Text(f"model      {told['model_id']}"), soft_wrap=True)
    console.print("\nGraph: steps of one number are one pass over the data, ~ is a shuffle")
    if told["pixels_in"]:
        console.print(f"(pixels stay inside of pass {', '.join(map(str, told['pixels_in']))})")
    _show_steps(told["graph"], console, 1)
    console.print("\nIt would write")
    for url in told["writes"]:
        console.print(Text(f"  {url}"), soft_wrap=True)
    console.print("\nNothing was run.")


def _show_steps(steps: list[dict[str, Any]], console: Console, depth: int) -> None:
    for step in steps:
        name = f"{'  ' * depth}{step['label']}"
        passes = ", ".join(map(str, step["passes"]))
        console.print(Text(f"{name:34}{'~' if step['shuffles'] else ' '}  {passes}"))
        _show_steps(step["steps"], console, depth + 1)
