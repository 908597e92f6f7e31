"""What people read in a terminal: text without its commands, and tables without lines."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text


def visible(text: str) -> str:
    """The text in one line, what cannot be seen of it shown by its escapes."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


def as_is(text: str) -> Text:
    """Text for a table: no markup, no commands."""
    from rich.text import Text

    return Text(visible(text), overflow="fold")


def table(*head: str, words: int = 1) -> Table:
    """A table of these columns; but for the first `words`, they are numbers."""
    from rich.table import Table

    made = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for place, name in enumerate(head):
        made.add_column(name, justify="left" if place < words else "right")
    return made


def masked(url: str) -> str:
    """The URL without the password that it may have."""
    scheme, mark, rest = url.partition("://")
    place, slash, path = rest.partition("/")
    login, at, host = place.rpartition("@")
    user, colon, _ = login.partition(":")
    # On GitHub `org:repo@ref` is no login.
    if not mark or not at or not colon or scheme == "github":
        return url
    return f"{scheme}://{user}:***@{host}{slash}{path}"
