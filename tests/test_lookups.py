"""What is listed against what is held, by digests and by a plain model of the same."""

from __future__ import annotations

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transforms import lookups
from transforms.lookups import Known, Lookups, lookup_keys
from transforms.records import MediaRef

URIS = st.sampled_from(
    ["a.jpg", "b.jpg", "s.tar", "s.tar#m.jpg", "s.tar#t#m.jpg", "s#x.tar#m.jpg", "s#x.tar"]
)
VERSIONS = st.sampled_from(["1", "2"])
IDS = st.sampled_from([None, "", "7", "8"])
ROWS = st.lists(st.tuples(URIS, VERSIONS, IDS), max_size=8)
KINDS = ("media", "manifest", "tar")


def known_of(files: list[list[tuple]]) -> Known:
    known = Known()
    for rows in files:
        columns = [pa.array([row[place] for row in rows], pa.string()) for place in range(3)]
        known.add(lookup_keys(*columns, Lookups("m", unversioned=True, tars=True)))
    return known


def is_held(ref: MediaRef, kind: str, rows: list[tuple]) -> bool:
    for uri, version, id_ in rows:
        same_id = (id_ or "") == (ref.id or "")
        if uri == ref.uri and same_id and (version == ref.version or ref.version_unknown):
            return True
        if kind == "tar" and uri.startswith(f"{ref.uri}#") and version == ref.version:
            return True
    return False


@settings(deadline=None)
@given(
    st.lists(ROWS, max_size=3),
    st.lists(st.builds(MediaRef, URIS, VERSIONS | st.just(""), st.none(), IDS), max_size=12),
    st.sampled_from(KINDS),
)
def test_missing_is_what_no_row_tells_of(files, refs, kind):
    rows = [row for file in files for row in file]
    if kind == "tar":
        # A tar's version is told by its listing.
        refs = [ref for ref in refs if ref.version]
    expected = [ref for ref in refs if not is_held(ref, kind, rows)]
    assert list(known_of(files).missing(refs, kind)) == expected


@pytest.mark.parametrize("unversioned", [False, True])
@pytest.mark.parametrize("tars", [False, True])
def test_keys_are_kept_only_for_what_is_asked(unversioned, tars):
    """A key is 16 bytes of an item, and there are millions."""
    uris = pa.array(["a.jpg", "b.jpg", "s.tar#1.jpg", "s.tar#2.jpg"])
    columns = [uris, pa.array(["1"] * 4), pa.array([None] * 4, pa.string())]
    keys = lookup_keys(*columns, Lookups("m", unversioned, tars))
    assert len(keys) == 4 + 4 * unversioned + tars


def test_a_listing_is_read_as_it_is_needed(monkeypatch):
    monkeypatch.setattr(lookups, "_REFS_AT_ONCE", 10)
    read = []

    def listing():
        for number in range(100):
            read.append(number)
            yield MediaRef(f"{number}.jpg", "1")

    known = known_of([[("3.jpg", "1", None)], []])
    missing = known.missing(listing(), "media")
    first = [next(missing).uri for _ in range(4)]
    assert (first, len(read)) == (["0.jpg", "1.jpg", "2.jpg", "4.jpg"], 10)
    assert len(list(missing)) == 95
    # What is learned later counts from then on.
    known.add(
        lookup_keys(*(pa.array([text]) for text in ("9.jpg", "1", "")), Lookups("m", False, False))
    )
    assert list(known.missing([MediaRef("9.jpg", "1"), MediaRef("3.jpg", "1")], "media")) == []
