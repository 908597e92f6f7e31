"""What a name says about its content, by its extension; content itself is asked when it is read."""

from __future__ import annotations

from glob import has_magic

from transforms.records import InputKind

PICTURES = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".gif", ".tif", ".tiff", ".bmp",
    ".avif", ".heic", ".heif", ".jp2", ".j2k",
)  # fmt: skip
"""Pictures: what a folder is searched for, and what a tar's samples hold."""

TEXTS = (".txt", ".md", ".markdown")

TARS = (".tar", ".tar.gz", ".tgz")

MANIFESTS = (
    ".txt", ".txt.gz", ".csv", ".csv.gz", ".tsv", ".tsv.gz", ".jsonl", ".jsonl.gz", ".parquet",
)  # fmt: skip


def kind_of(url: str) -> InputKind:
    """What an input's files are: one `.txt` is a manifest, many by a glob are texts themselves."""
    name = url.lower()
    if name.endswith(TARS):
        return "tar"
    if name.endswith(MANIFESTS) and not (name.endswith(".txt") and has_magic(name)):
        return "manifest"
    return "media"
