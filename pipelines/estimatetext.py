"""What `beamtag estimate` prints for people."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pipelines.terminal import as_is, table

if TYPE_CHECKING:
    from rich.console import Console

LEFT_OUT = (
    "Left out: what an output has already, equal bytes (embedded once), stores that slow down "
    "under more load, and what several workers lose to each other."
)


def summarize(told: dict[str, Any], console: Console) -> None:
    """Print what `--json` has, for people."""
    about = "" if told["listed"]["exact"] else "about "
    listed, sample, rates = told["listed"], told["sample"], told["items_per_second"]
    head = table("", "")
    head.show_header = False
    head.columns[1].justify = "left"
    in_tars = f" ({listed['tars']:,} tars)" if listed["tars"] else ""
    head.add_row(
        "listed", f"{about}{listed['items']:,} items{in_tars}, {about}{size_said(listed['bytes'])}"
    )
    failed = f", {sample['failed']:,} of them failed" if sample["failed"] else ""
    head.add_row(
        "sample",
        f"{sample['items']:,} items in {time_said(sample['seconds'])}{failed}; "
        f"start-up took {time_said(told['startup_seconds'])}",
    )
    head.add_row(
        "speed",
        f"{rates['likely']:,.0f} items/s a worker ({rates['least']:,.0f} to {rates['most']:,.0f})",
    )
    console.print(head)
    if told["bottleneck"]:
        console.print(as_is(told["bottleneck"]["sentence"]), soft_wrap=True)

    priced = told["price_per_hour"] is not None
    costs = table("items", "time", "from", "to", *(["cost", "from", "to"] * priced), "tables")
    for each in told["estimates"]:
        costs.add_row(
            f"{each['items']:,}",
            *(time_said(value) for value in each["seconds"].values()),
            *(f"{value:,.2f}" for value in (each["cost"] or {}).values()),
            size_said(each["output_bytes"]),
        )
    console.print()
    console.print(costs)
    workers = f"{told['workers']} workers, " if told["workers"] > 1 else ""
    console.print(f"\n{workers}{LEFT_OUT}")


def time_said(seconds: float) -> str:
    """A time as people say it: `14.2 s`, `35 min`, `11.4 h`, `9.3 days`."""
    for unit, length, most in (("s", 1, 120), ("min", 60, 120), ("h", 3600, 72)):
        if seconds < most * length:
            return f"{seconds / length:.{0 if unit == 'min' else 1}f} {unit}"
    return f"{seconds / 86400:.1f} days"


def size_said(size: float) -> str:
    """So many bytes as people say it: `310 MB`."""
    for unit in ("bytes", "kB", "MB", "GB", "TB"):
        if size < 999.5 or unit == "TB":
            return f"{size:.{0 if unit == 'bytes' or size >= 99.95 else 1}f} {unit}"
        size /= 1000
    raise AssertionError
