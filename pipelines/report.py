"""What a person sees: progress while a job runs, and what it found when it has ended."""

from __future__ import annotations

import contextlib
import json
import logging
import re
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from transforms.storage import read_object

LINE_EVERY_S = 30.0
BAR_EVERY_S = 0.2
TOP_LABELS = 10
SHARDS = 10
"""How many shards that do not add up are named."""

logger = logging.getLogger("beamtag")


def set_up_logging(*, quiet: bool, local: bool) -> None:
    """Our own messages to standard error as plain lines; others' only from a warning on."""
    level = logging.ERROR if quiet else logging.WARNING
    logging.basicConfig(level=level, format="%(message)s", force=True)
    logger.setLevel(logging.ERROR if quiet else logging.INFO)
    # Of a picture's broken metadata: what matters of it is in the tables.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    # Beam warns on the root logger of clients and modules that this job does not use.
    logging.getLogger().addFilter(lambda record: record.levelno >= logging.ERROR)
    # Some set their own loggers' level, such as that of the job server's output.
    for handler in logging.getLogger().handlers:
        handler.addFilter(lambda record: record.name == logger.name or record.levelno >= level)
    # The hub's client tells of every retry, twice; what came of them is in our own error.
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    # These log what they raise; a raised error is a row of failures, or our own line.
    for name in ("PIL", "gcsfs"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    if not (local or quiet):
        _let_dataflow_speak()
    if local:
        # What a stage raises here reaches the job itself, which prints it once.
        logging.getLogger("apache_beam").setLevel(logging.CRITICAL)


_OF_DATAFLOW = ("Created job with id", "To access the Dataflow", "Job %s is in state")


def _in_our_name(record: logging.LogRecord) -> bool:
    if record.levelno > logging.INFO:
        return True
    if str(record.msg).startswith(_OF_DATAFLOW):
        logger.info(record.getMessage())
    return False


def _let_dataflow_speak() -> None:
    """The job's id, its page in the console, its states: of all that Beam logs of a submission."""
    for name in ("dataflow_runner", "internal.apiclient"):
        of_beam = logging.getLogger(f"apache_beam.runners.dataflow.{name}")
        of_beam.setLevel(logging.INFO)
        of_beam.addFilter(_in_our_name)


class _RateColumn(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.finished_speed or task.speed or 0:.0f} items/s")


@contextlib.contextmanager
def live_progress(*, shown: bool) -> Iterator[None]:
    """Show a local run's progress: a bar on a terminal, elsewhere a line now and then."""
    if not shown:
        yield
        return
    console = Console(stderr=True)
    stop = threading.Event()
    show = _show_bar if console.is_terminal else _show_lines
    thread = threading.Thread(target=show, args=(console, stop), daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _show_bar(console: Console, stop: threading.Event) -> None:
    from transforms.progress import progress

    bar = Progress(
        TextColumn("tagging"),
        BarColumn(),
        MofNCompleteColumn(),
        _RateColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
    )
    with bar:
        task = bar.add_task("tag", total=None)
        while not stop.wait(BAR_EVERY_S):
            bar.update(task, completed=progress.done, total=progress.listed or None)


def _show_lines(console: Console, stop: threading.Event) -> None:
    from transforms.progress import progress

    started = time.monotonic()
    while not stop.wait(LINE_EVERY_S):
        if not progress.done:
            logger.info("listing: %d items so far", progress.listed)
            continue
        rate = progress.done / (time.monotonic() - started)
        left = (progress.listed - progress.done) / rate
        logger.info(
            "%d of %d items, %d failed, %.0f items/s, about %.0f s left",
            progress.done,
            progress.listed,
            progress.failed,
            rate,
            left,
        )


def close(job: str, record_url: str, *, quiet: bool, as_json: bool) -> int:
    """Print what a finished run's record says; gives the exit status: 0, or 1 unless balanced."""
    text = read_object(record_url).decode()
    record = json.loads(text)
    if as_json:
        sys.stdout.write(text)
    elif not quiet:
        summarize(record, record_url, Console(highlight=False))
    if record["status"] == "finished":
        return 0
    print(f"beamtag {job}: failed: {_what_failed(record)}", file=sys.stderr)  # noqa: T201
    return 1


def _what_failed(record: dict[str, Any]) -> str:
    if record["status"] != "unbalanced":
        return str(record["error"])
    counts = dict(record["counts"])
    listed = counts.pop("listed")
    parts = " + ".join(f"{count} {what}" for what, count in counts.items())
    line = f"{listed} items were listed, but {parts} do not add up to that"
    shards = record["unbalanced_shards"]
    if not shards:
        return line
    named = ", ".join(f"{shard} ({missing:+d})" for shard, missing in list(shards.items())[:SHARDS])
    more = f" and {len(shards) - SHARDS} more" if len(shards) > SHARDS else ""
    return f"{line}; listed less written, by shard: {named}{more}"


def summarize(record: dict[str, Any], record_url: str, console: Console) -> None:
    """Print the closing summary of a run's record."""
    counts = record["counts"]
    if not counts["listed"] and not record["scored"]:
        inputs = ", ".join(record["inputs"])
        nothing = (
            f"Nothing to tag: no pictures in {inputs}"
            if inputs
            else f"Nothing to score: every vector of {record['model_id']} has predictions already"
        )
        console.print(Text(nothing), soft_wrap=True)
        return
    console.print(_counts_table(record))
    if record["bottleneck"]:
        console.print(Text(record["bottleneck"]["sentence"]), soft_wrap=True)
    if record["model"].get("loaded") == []:
        console.print("\nNothing is new: no model was loaded")

    for label_set_id, labels in record["labels"].items():
        console.print(f"\n[bold]Most frequent labels[/bold] ({label_set_id})")
        most = max(labels.values(), default=0)
        frequent = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
        for label, count in list(labels.items())[:TOP_LABELS]:
            frequent.add_row(Text(label), f"{count:,}", "█" * max(1, round(24 * count / most)))
        console.print(frequent)

    if record["examples"]:
        console.print("\n[bold]Some of the tags[/bold]")
        examples = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
        for example in record["examples"]:
            examples.add_row(
                Text(example["uri"], overflow="fold"),
                Text(example["label"]),
                f"{example['score']:.2f}",
            )
        console.print(examples)

    output = record["output"]
    console.print("\n[bold]Tables[/bold]")
    for name in ("embeddings", "predictions", "failures"):
        console.print(f"  {output}/{name}/", soft_wrap=True)
    console.print(f"  {record_url}", soft_wrap=True)
    console.print("\n[bold]Ask them[/bold] (DuckDB)")
    console.print(Text(latest_tags_sql(record)), soft_wrap=True)


def _counts_table(record: dict[str, Any]) -> Table:
    counts = record["counts"]
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    if not record["inputs"]:
        table.add_row("scored", f"{record['scored']:,} stored vectors")
        table.add_row("speed", f"{record['scored'] / record['wall_seconds']:,.0f} vectors/s")
        return table
    table.add_row("listed", f"{counts['listed']:,}")
    if counts["reused"]:
        table.add_row("reused", f"{counts['reused']:,}")
    table.add_row("embedded", f"{counts['embedded']:,}")
    if counts["duplicates"]:
        table.add_row("duplicates", f"{counts['duplicates']:,} of bytes that have a vector already")
    told = [f"{count:,} {reason}" for reason, count in record["failures"].items()]
    if record["known_failures"]:
        told.append(f"{record['known_failures']:,} known from earlier runs")
    table.add_row("failed", f"{counts['failed']:,}" + (f" ({', '.join(told)})" if told else ""))
    if record["scored"]:
        table.add_row("scored", f"{record['scored']:,} stored vectors")
    if "pruned" in record:
        pruned = record["pruned"]
        table.add_row("pruned", f"{pruned['rows']:,} rows of {pruned['items']:,} gone items")
    if record["retries"]:
        table.add_row("retries", f"{record['retries']:,} reads were tried again")
    if counts["embedded"]:
        table.add_row("speed", f"{record['items_per_second']:,.0f} items/s")
    return table


def latest_tags_sql(record: dict[str, Any]) -> str:
    """A query that counts every item's latest best tag, of a run's first label set and model."""
    label_set_id = next(iter(record["label_sets"]))
    # A pattern's characters in the output's own name stand for themselves.
    output = re.sub(r"([*?[])", r"[\1]", record["output"])
    pattern = (
        f"{output}/predictions/label_set={label_set_id}/model={record['model_id']}/**/*.parquet"
    ).replace("'", "''")
    return (
        "  SELECT label, count(*) AS items, round(avg(score), 2) AS score\n"
        f"  FROM (FROM read_parquet('{pattern}')\n"
        "        WHERE rank <= 1\n"
        "        QUALIFY row_number() OVER (PARTITION BY uri, id ORDER BY embedded_at DESC) = 1)\n"
        "  WHERE label IS NOT NULL GROUP BY label ORDER BY items DESC, label LIMIT 10;"
    )
