"""Which of the files below an input are taken: globs and extensions; pure, and no Beam."""

from __future__ import annotations

import re
from collections.abc import Callable

from fsspec.utils import glob_translate

from transforms.records import Selection


def selector(
    selection: Selection, extensions: tuple[str, ...] | None, skip: int
) -> Callable[[str], bool]:
    """Whether a name, from its character `skip` on, is one that was asked for.

    Raises ValueError for a glob that is none.
    """
    includes = _matcher(selection.include)
    excludes = _matcher(selection.exclude)

    def wanted(name: str) -> bool:
        if extensions is not None and not name.lower().endswith(extensions):
            return False
        below = name[skip:]
        return (includes is None or includes(below)) and not (excludes and excludes(below))

    return wanted


def pattern_of(glob: str) -> str:
    """The regular expression of a glob of `Selection`. Raises ValueError for one that is none."""
    # A name matches at any depth.
    pattern: str = glob_translate(glob.lstrip("/") if "/" in glob else f"**/{glob}")
    return pattern


def _matcher(globs: tuple[str, ...]) -> Callable[[str], bool] | None:
    if not globs:
        return None
    matches = re.compile("|".join(map(pattern_of, globs))).match
    return lambda below: matches(below) is not None
