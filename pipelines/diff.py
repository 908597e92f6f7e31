"""Two versions of a label file on the stored archive: which tags a change adds, drops and moves."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pipelines import checks
from pipelines.analysing import main as run_main
from pipelines.analysing import usage_errors
from pipelines.groups import Parser, add_limits, add_model, add_output, add_printing
from pipelines.placing import check_stored, placing_of
from pipelines.terminal import as_is, table

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from transforms.labeldiff import Difference, LabelChange, Tag

EPILOG = """\
docs/diff.md says what each figure means.

exit status:
  0  the two are compared, whether or not anything changes
  1  the output or a file that a label set names cannot be read
  2  bad usage, said in one line before any work

example:
  beamtag diff labels.yaml labels-new.yaml --output=gs://bucket/tags --sample=10000
"""


def parser(prog: str = "beamtag diff") -> Parser:
    """The parser of the diff job."""
    parser = Parser(
        prog,
        "Say what a change of a label file would do to an archive's tags. Nothing is written.",
        EPILOG,
    )
    group = parser.add_argument_group("what to compare")
    for name, what in (("old", "the label set as it is"), ("new", "the label set as it is to be")):
        group.add_argument(
            name,
            metavar=name.upper(),
            type=checks.nonempty,
            help=f"{what}: a label-set file (YAML), or the name of a built-in one",
        )
    add_output(group, "where the stored vectors are; nothing is written there")
    group.add_argument(
        "--sample",
        type=checks.positive,
        metavar="N",
        help="compare on so many items, chosen at random, the same ones each time (default: all)",
    )
    add_model(parser)
    add_limits(parser.add_argument_group("example pictures of labels"))
    group = parser.add_argument_group("what is printed")
    group.add_argument(
        "--top",
        type=checks.positive,
        default=20,
        metavar="N",
        help="how many labels, moves and items are shown; as JSON, all labels (default: "
        "%(default)s)",
    )
    add_printing(group)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job; gives the exit status: 0 compared, 1 failed, 2 bad usage."""
    return run_main("diff", argv, parser(), _run)


def _run(options: argparse.Namespace) -> int:
    from transforms.labelfile import read_label_set

    with usage_errors():
        old, new = read_label_set(options.old), read_label_set(options.new)
        placing = placing_of(options)
        check_stored(options.output, placing.info.model_id)
        old, new = placing.resolve(old), placing.resolve(new)
        labels = placing.place(old), placing.place(new)
    # Not before: this waits for Beam.
    from transforms.labeldiff import compare
    from transforms.labelpairs import pair_labels
    from transforms.latest import latest_vectors

    items = latest_vectors(options.output, placing.info.model_id, sample=options.sample)
    found = compare(items, *labels, pair_labels(old, new), options.top)
    heading = {
        "output": options.output,
        "model_id": placing.info.model_id,
        "old": {"file": options.old, "label_set_id": old.label_set_id},
        "new": {"file": options.new, "label_set_id": new.label_set_id},
        "activations": sorted({old.activation, new.activation}),
        "sample": options.sample,
    }
    _print(found, heading, options)
    return 0


def _print(found: Difference, heading: dict[str, Any], options: argparse.Namespace) -> None:
    if options.json:
        json.dump({**heading, **found.plain()}, sys.stdout, indent=2)
        sys.stdout.write("\n")
    elif not options.quiet:
        from rich.console import Console

        _summarize(found, heading, options.top, Console(highlight=False))


def _summarize(found: Difference, heading: dict[str, Any], top: int, console: Console) -> None:
    for text in _about(found, heading):
        console.print(as_is(text), soft_wrap=True)
    _show_labels([label for label in found.labels if label.size], top, console)
    _show_moves(found, console)
    _show_items(found, console)


def _about(found: Difference, heading: dict[str, Any]) -> list[str]:
    old, new = heading["old"], heading["new"]
    model_id = heading["model_id"]
    sampled = f", a random sample of {heading['output']}" if heading["sample"] else ""
    lines = [
        f"before: {old['file']} ({old['label_set_id']})",
        f"after:  {new['file']} ({new['label_set_id']})",
        f"{_items(found.items)} with vectors of {model_id} compared{sampled}.",
    ]
    if old["label_set_id"] == new["label_set_id"]:
        lines.append("Nothing in the two files differs that could change a tag.")
    if len(heading["activations"]) > 1:
        lines.append(
            f"The scores of the two are not of one kind ({' and '.join(heading['activations'])}): "
            "compare tags, not scores."
        )
    for sets, what in (("new", "added"), ("old", "removed")):
        told = [label for label in found.labels if label.sets == sets]
        if told:
            names = ", ".join(label.label for label in told[:10])
            more = f" and {len(told) - 10:,} more" if len(told) > 10 else ""
            lines.append(f"Labels {what}: {names}{more}.")
    renamed = [f"{label.was} is now {label.label}" for label in found.labels if label.was]
    if renamed:
        more = f", and {len(renamed) - 10:,} more" if len(renamed) > 10 else ""
        lines.append(f"Labels renamed: {'; '.join(renamed[:10])}{more}.")
    lines.append(
        f"Other tags than before: {_items(found.retagged)}. Another best tag: "
        f"{_items(found.moved)}. No tag at all: {_items(found.untagged_before)} before, "
        f"{found.untagged_after:,} after."
    )
    return lines


def _show_labels(changed: Sequence[LabelChange], top: int, console: Console) -> None:
    if not changed:
        return
    more = f" ({top} of {len(changed):,})" if len(changed) > top else ""
    console.print(f"\n[bold]Labels whose items change[/bold], the most changed first{more}")
    console.print(
        "[dim]before, after: items with this tag. gained, lost: items that have it only after, "
        "only before.\nmoved: items whose best tag it was, and whose best tag is another "
        "label after.[/dim]"
    )
    rows = table("label", "before", "after", "gained", "lost", "moved")
    for label in changed[:top]:
        numbers = label.before, label.after, label.gained, label.lost, label.moved
        rows.add_row(as_is(label.label), *(f"{number:,}" for number in numbers))
    console.print(rows)


def _show_moves(found: Difference, console: Console) -> None:
    if not found.moves:
        return
    console.print("\n[bold]Where best tags move[/bold], the most frequent first")
    rows = table("best tag before", "best tag after", "items", words=2)
    for move in found.moves:
        rows.add_row(as_is(move.before), as_is(move.after), f"{move.items:,}")
    console.print(rows)


def _show_items(found: Difference, console: Console) -> None:
    if not found.items_most_changed:
        return
    console.print("\n[bold]Items whose scores change most[/bold]")
    for item in found.items_most_changed:
        console.print(as_is(item.uri), soft_wrap=True)
        console.print(_tags("before", item.before), soft_wrap=True)
        console.print(_tags("after ", item.after), soft_wrap=True)


def _tags(when: str, tags: Sequence[Tag]) -> Text:
    told = ", ".join(f"{tag.label} {tag.score:.2f}" for tag in tags) or "no tag"
    return as_is(f"  {when}  {told}")


def _items(count: int) -> str:
    return f"{count:,} item" if count == 1 else f"{count:,} items"


if __name__ == "__main__":
    sys.exit(main())
