"""What may become of a broken file: "embedded", or reasons of `transforms.records.Reason`."""

from __future__ import annotations

from typing import NamedTuple

EMBEDDED, EMPTY, NO_IMAGE = "embedded", "empty", "not_an_image"
TRUNCATED, CORRUPT, TOO_LARGE = "truncated_image", "corrupt_image", "too_many_pixels"
UNSUPPORTED, NO_TEXT = "unsupported_image", "not_text"
DAMAGED = frozenset({TRUNCATED, CORRUPT, UNSUPPORTED})


class Broken(NamedTuple):
    """One file: its path within the corpus, its bytes, and what may become of it.

    Where there are several outcomes, it depends on where the damage lies, or on whether the job
    takes text.
    """

    name: str
    data: bytes
    outcomes: frozenset[str]


def broken(name: str, data: bytes, *outcomes: str) -> Broken:
    return Broken(name, data, frozenset(outcomes))
