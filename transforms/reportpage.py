"""An evaluation as one page of HTML that needs nothing else: no script, no font, no network."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from transforms.evaluation import Evaluation, LabelResult, Mistake
from transforms.reportplots import (
    BARS,
    calibration_diagram,
    confusion_map,
    f1_bars,
    share,
    table,
    text,
)

PAIRS = 24
"""How many pairs of labels that are mixed up are listed."""

_STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.45 system-ui, sans-serif; color: #1c2430; background: #fff;
  max-width: 1080px; margin: 2rem auto; padding: 0 1.2rem; }
h1 { font-size: 1.5rem; margin: 0 0 .3rem; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2.2rem 0 .4rem; }
p { margin: .3rem 0; max-width: 72ch; overflow-wrap: anywhere; }
.about { color: #566273; }
.figures { display: flex; flex-wrap: wrap; gap: .7rem; margin: 1.2rem 0; }
.figures div { border: 1px solid #d5dbe3; border-radius: 6px; padding: .6rem .9rem; }
.figures b { display: block; font-size: 1.35rem; font-variant-numeric: tabular-nums; }
.side { display: flex; flex-wrap: wrap; gap: 2rem; align-items: flex-start; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .2rem .7rem .2rem 0; text-align: right; border-bottom: 1px solid #e6eaef; }
th:first-child, td:first-child { text-align: left; overflow-wrap: anywhere; }
.words th, .words td { text-align: left; }
svg text { font: 12px system-ui, sans-serif; fill: #1c2430; }
svg .grid { stroke: #dfe4ea; } svg .ideal { stroke: #8a94a3; stroke-dasharray: 4 4; }
svg .bar { fill: #3f7cc4; } svg .count { fill: #b9c3cf; } svg circle { fill: #14365f; }
svg .cell { fill: #d9622b; }
.worst { display: grid; grid-template-columns: repeat(auto-fill, minmax(170px, 1fr)); gap: 1rem; }
figure { margin: 0; border: 1px solid #d5dbe3; border-radius: 6px; padding: 5px; }
figure img, .unread { width: 160px; height: 160px; display: block; margin: 0 auto; }
.unread { background: #eef1f5; color: #566273; display: flex; align-items: center;
  justify-content: center; }
figcaption { font-size: .85rem; overflow-wrap: anywhere; }
figcaption .uri { color: #566273; font-size: .75rem; display: block; }
"""

# Whatever a file's name or a label may say: the page loads and runs nothing.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


class Heading(NamedTuple):
    """What was evaluated: `answers` says where they come from, `truth` its source."""

    label_set_id: str
    model_id: str
    output: str
    truth: str
    answers: str


def page(found: Evaluation, heading: Heading, pictures: Mapping[str, str | None]) -> str:
    """The page; `pictures` has `data:` URIs of mistakes by uri, None for what cannot be shown."""
    title = f"Evaluation of {heading.label_set_id}"
    return "".join(
        [
            '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{text(title)}</title><style>{_STYLE}</style></head><body>",
            f"<h1>{text(title)}</h1>",
            *_about(found, heading),
            *_figures(found),
            *_labels(found.labels),
            *_calibration(found),
            *_confusion(found),
            *_worst(found.worst, pictures),
            "</body></html>\n",
        ]
    )


def _about(found: Evaluation, heading: Heading) -> Iterator[str]:
    yield (
        f'<p class="about">{text(heading.answers)} of {text(heading.model_id)} in '
        f"{text(heading.output)}, truth: {text(heading.truth)}</p>"
    )
    yield f"<p>{text(coverage(found))}</p>"


def coverage(found: Evaluation) -> str:
    """How much of the truth could be compared, in a sentence or two."""
    said = f"{found.items:,} items compared."
    if found.missing:
        names = ", ".join(found.missing_uris[:3]) + (", ..." if found.missing > 3 else "")
        said += f" {found.missing:,} of {found.uris:,} with truth are not in the output: {names}."
    if found.left_out:
        said += f" {found.left_out:,} rows of truth are left out: their labels are unknown."
    if found.untagged:
        said += f" {found.untagged:,} got no tag."
    return said


def _figures(found: Evaluation) -> Iterator[str]:
    shown = [(name, share(value)) for name, value in figures(found)]
    if found.calibration_error is not None:
        shown.append(("calibration error", f"{found.calibration_error:.3f}"))
    parts = (f"<div><b>{text(value)}</b>{text(name)}</div>" for name, value in shown)
    yield f'<div class="figures">{"".join(parts)}</div>'


def figures(found: Evaluation) -> list[tuple[str, float | None]]:
    """The figures that are shares, by their names."""
    return [
        ("top-1", found.top_1),
        ("top-5", found.top_5),
        ("mean per-class recall", found.mean_class_recall),
        ("mAP", found.mean_average_precision),
        ("precision of tags", found.precision),
        ("recall of tags", found.recall),
        ("F1 of tags", found.f1),
    ]


def worst_first(labels: Sequence[LabelResult]) -> list[LabelResult]:
    """The labels that some item has, those with the least F1 first, then the most frequent."""
    return sorted((row for row in labels if row.items), key=lambda row: (row.f1 or 0.0, -row.items))


def _labels(labels: Sequence[LabelResult]) -> Iterator[str]:
    rows = worst_first(labels)
    some = f" The {BARS} worst of {len(rows)}." if len(rows) > BARS else ""
    yield f"<h2>Labels</h2><p>F1 of each label's tags, the worst first.{some}</p>"
    yield f'<div class="scroll">{f1_bars(rows)}</div>'
    head = ("label", "items", "tagged", "precision", "recall", "F1", "average precision")
    told = (
        (
            row.path,
            f"{row.items:,}",
            f"{row.tagged:,}",
            *map(share, (row.precision, row.recall, row.f1, row.average_precision)),
        )
        for row in labels
        if row.items or row.tagged
    )
    yield (
        "<details><summary>All labels that items have or got</summary>"
        f'<div class="scroll">{table(head, told)}</div></details>'
    )


def _calibration(found: Evaluation) -> Iterator[str]:
    if not found.calibration:
        return
    yield (
        "<h2>Calibration</h2><p>How often an item's best label is right, by its score. Bars on the "
        "dashed line would mean that a score is a probability; bars below it, that scores are too "
        "sure. Grey: how many items have such scores.</p>"
    )
    yield f'<div class="scroll">{calibration_diagram(found.calibration)}</div>'


def _confusion(found: Evaluation) -> Iterator[str]:
    if not found.confusion:
        return
    yield (
        "<h2>Taken for others</h2><p>Rows: what items are. Columns: their best label, where it is "
        "wrong.</p>"
    )
    told = (
        (pair.truth, pair.best or "no tag", f"{pair.items:,}") for pair in found.confusion[:PAIRS]
    )
    pairs = table(("is", "taken for", "items"), told)
    yield (
        f'<div class="side"><div class="scroll">{confusion_map(found.confusion)}</div>'
        f'<div class="words scroll">{pairs}</div></div>'
    )


def _worst(worst: Sequence[Mistake], pictures: Mapping[str, str | None]) -> Iterator[str]:
    if not worst:
        return
    yield (
        "<h2>The worst mistakes</h2><p>Items whose best label is wrong, the highest scores first. "
        'Some may be mistakes of the truth.</p><div class="worst">'
    )
    for one in worst:
        picture = pictures.get(one.uri)
        shown = (
            f'<img src="{text(picture)}" alt="">'
            if picture
            else '<div class="unread">cannot be shown</div>'
        )
        yield (
            f"<figure>{shown}<figcaption><b>{text(one.best)}</b> {one.score:.2f}<br>"
            f'is {text(", ".join(one.truth))}<span class="uri">{text(one.uri)}</span>'
            "</figcaption></figure>"
        )
    yield "</div>"
