"""Model folders on object storage, copied once per machine: locked, checked, then only read."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from pathlib import Path

import filelock

from transforms.storage import locate

_WANTED = (".json", ".safetensors", ".bin", ".pth", ".pt", ".txt", ".model", ".npz")


def cache_folder() -> Path:
    """Where copies are kept: `$BEAMTAG_CACHE`, or `beamtag` in the user's cache folder."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("BEAMTAG_CACHE") or Path(home) / "beamtag")


def fetch_folder(url: str) -> Path:
    """Copy a model's folder to this machine, once for every version of its files.

    Processes that ask at the same time wait for one copy. Every file's length is checked against
    the listing, and a copy appears under its name only when it is whole. Raises OSError where the
    folder cannot be listed or read, or does not arrive whole.
    """
    filesystem, root = locate(url)
    listing = {
        path: details
        for path, details in filesystem.find(root, maxdepth=1, detail=True).items()
        if path.endswith(_WANTED)
    }
    if not listing:
        raise FileNotFoundError(f"no model files under {url}")
    # The listing, not only the address, names the copy: a model replaced in place is a new one.
    identity = sorted(
        (path, str(details.get("size")), str(_version(details)))
        for path, details in listing.items()
    )
    key = hashlib.sha256(repr((url, identity)).encode()).hexdigest()[:16]
    models = cache_folder() / "models"
    models.mkdir(parents=True, exist_ok=True)
    target = models / key
    with filelock.FileLock(models / f"{key}.lock"):
        if target.is_dir():
            return target
        aside = Path(tempfile.mkdtemp(prefix=f"{key}.", dir=models))
        try:
            for path, details in listing.items():
                copy = aside / path.rsplit("/", 1)[-1]
                filesystem.get_file(path, str(copy))
                if copy.stat().st_size != details.get("size"):
                    raise OSError(
                        f"{path}: {copy.stat().st_size} bytes arrived of {details.get('size')}"
                    )
            aside.rename(target)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
    return target


def _version(details: dict[str, object]) -> object:
    for key in ("generation", "ETag", "etag", "md5Hash", "mtime", "created"):
        if details.get(key):
            return details[key]
    return None


def sha256_file(path: Path) -> str:
    """The sha256 of a file's content, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
