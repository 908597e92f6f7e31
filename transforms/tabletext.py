"""Text as tables hold it, which is UTF-8: made of whatever stores, manifests and tars tell."""

from __future__ import annotations

import json


def carried_text(value: object) -> str | None:
    """A value of a manifest's or sample's metadata as a table carries it: JSON if it is nested."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return str(value)
    try:
        return json.dumps(value, ensure_ascii=False, default=str)
    except RecursionError:
        # Reading it took a few calls less. The item is not lost for a value like that.
        return "(nested too deeply)"


def escaped(text: str) -> str:
    """The text, half characters that JSON can spell shown by their escapes."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def printable(name: str) -> str:
    """A name, bytes of it that are no UTF-8 shown by their escapes."""
    if name.isascii():
        return name
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
