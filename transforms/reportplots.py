"""Plots of an evaluation as SVG, made by hand: text in, text out, everything escaped."""

from __future__ import annotations

import html
from collections.abc import Iterator, Sequence

from transforms.evaluation import Bin, LabelResult, Mixed

BARS = 40
"""How many labels have a bar."""

CELLS = 16
"""How many labels a side the heatmap has at most."""

_NAME = 28
"""Characters of a label's name in a plot."""


def text(value: object) -> str:
    """Text for HTML, quotes too; what is no text shown by its escapes."""
    return html.escape(str(value).encode("utf-8", "backslashreplace").decode("utf-8"))


def share(value: float | None) -> str:
    """A share in per cent."""
    return "–" if value is None else f"{value:.1%}"


def f1_bars(labels: Sequence[LabelResult]) -> str:
    """A bar for the F1 of each label, as many as fit, in the order given."""
    rows = labels[:BARS]
    height = 22 * len(rows) + 24
    parts = [_open(640, height, "F1 of each label's tags")]
    for tick in range(0, 101, 25):
        x = 220 + 3.6 * tick
        parts.append(_line(x, 4, x, height - 20, "grid"))
        parts.append(_text(x, height - 6, f"{tick}%", "middle"))
    for number, row in enumerate(rows):
        y = 22 * number + 6
        value = row.f1 or 0.0
        title = f"{row.path}: F1 {share(row.f1)}, {row.hits} of {row.items} found"
        parts.append(_text(212, y + 13, _short(row.path), "end", row.path))
        parts.append(
            f'<rect class="bar" x="220" y="{y + 2}" width="{360 * value:.1f}" height="14">'
            f"<title>{text(title)}</title></rect>"
        )
        parts.append(_text(226 + 360 * value, y + 13, share(row.f1)))
    return "".join([*parts, "</svg>"])


def calibration_diagram(bins: Sequence[Bin]) -> str:
    """The share that is right over the score, in bins; below: how many items each has."""
    parts = [_open(420, 440, "how often best labels are right, by their score")]
    for tick in range(0, 101, 25):
        at = 3.4 * tick
        parts.append(_line(50, 350 - at, 390, 350 - at, "grid"))
        parts.append(_text(44, 354 - at, f"{tick}%", "end"))
        parts.append(_text(50 + at, 426, f"{tick / 100:g}", "middle"))
    most = max((one.items for one in bins), default=0)
    for one in bins:
        if one.accuracy is None or one.confidence is None:
            continue
        x, wide = 50 + 340 * one.low, 340 * (one.high - one.low) - 2
        title = (
            f"scores from {one.low:.2f} to {one.high:.2f}: {one.items} items, "
            f"{share(one.accuracy)} right, mean score {one.confidence:.3f}"
        )
        top, deep = 350 - 340 * one.accuracy, 50 * one.items / most
        parts.append(f"<g><title>{text(title)}</title>")
        parts.append(_rect("bar", x, top, wide, 340 * one.accuracy))
        parts.append(_rect("count", x, 410 - deep, wide, deep))
        parts.append(f'<circle cx="{50 + 340 * one.confidence:.1f}" cy="{top:.1f}" r="3"/></g>')
    parts.append(_line(50, 350, 390, 10, "ideal"))
    return "".join([*parts, "</svg>"])


def confusion_map(pairs: Sequence[Mixed]) -> str:
    """How often a label (row) has another as its best (column), of those mixed up most."""
    kept = [(pair.truth, pair.best, pair.items) for pair in pairs if pair.best is not None]
    truths = list(dict.fromkeys(truth for truth, _, _ in kept))[:CELLS]
    bests = list(dict.fromkeys(best for truth, best, _ in kept if truth in truths))[:CELLS]
    width, height = 340 + 28 * len(bests), 190 + 28 * len(truths)
    parts = [_open(width, height, "labels that are taken for others")]
    for row, truth in enumerate(truths):
        parts.append(_text(214, 199 + 28 * row, _short(truth), "end", truth))
    for column, best in enumerate(bests):
        x = 238 + 28 * column
        turned = f' transform="rotate(-60 {x} 174)"'
        parts.append(_text(x, 174, _short(best), "start", best, turned))
    most = max((items for _, _, items in kept), default=1)
    for truth, best, items in kept:
        if truth not in truths or best not in bests:
            continue
        x, y = 220 + 28 * bests.index(best), 180 + 28 * truths.index(truth)
        title = f"{truth} taken for {best}: {items}"
        strong = 0.15 + 0.85 * items / most
        parts.append(
            f'<rect class="cell" x="{x}" y="{y}" width="26" height="26" '
            f'fill-opacity="{strong:.2f}"><title>{text(title)}</title></rect>'
        )
        parts.append(_text(x + 13, y + 18, str(items), "middle"))
    return "".join([*parts, "</svg>"])


def table(head: Sequence[str], rows: Iterator[Sequence[str]]) -> str:
    """A table; all but the first column's cells are numbers."""
    heads = "".join(f"<th>{text(name)}</th>" for name in head)
    lines = ("".join(f"<td>{text(cell)}</td>" for cell in row) for row in rows)
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return f"<table><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table>"


def _open(width: float, height: float, what: str) -> str:
    return (
        f'<svg viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img" '
        f'aria-label="{text(what)}">'
    )


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    ends = f'x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"'
    return f'<line class="{kind}" {ends}/>'


def _rect(kind: str, x: float, y: float, width: float, height: float) -> str:
    place = f'x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}"'
    return f'<rect class="{kind}" {place}/>'


def _text(
    x: float, y: float, said: str, anchor: str = "start", title: str = "", more: str = ""
) -> str:
    whole = f"<title>{text(title)}</title>" if title else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{more}>{text(said)}{whole}</text>'


def _short(name: str) -> str:
    """A name's end, which tells more of a path than its beginning."""
    return name if len(name) <= _NAME else f"…{name[1 - _NAME :]}"
