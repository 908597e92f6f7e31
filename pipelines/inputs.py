"""Whether what `--input` names is there to be listed, before any work; and what it lists."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from pipelines.endings import one_line
from pipelines.groups import UsageError
from transforms.beamfiles import open_object
from transforms.listing import input_exists, list_media
from transforms.manifestfiles import read_rows
from transforms.manifestrows import ManifestError
from transforms.manifests import check_manifest, manifest_kind
from transforms.records import Input, MediaRef, Selection


def check_inputs(inputs: Iterable[Input], carry: tuple[str, ...] = ()) -> None:
    """Raise `UsageError` for an input that is not there, or for a manifest that is none."""
    for given in inputs:
        try:
            exists = input_exists(given.url)
            if exists and given.kind == "manifest":
                for ref in list_media(given.url, "manifest"):
                    check_manifest(ref.uri, carry)
        except ManifestError as error:
            raise UsageError(str(error)) from error
        # Any store's client, any error of its own; without its package there is none.
        except Exception as error:
            raise UsageError(f"cannot look at --input={given.url}: {one_line(error)}") from error
        if not exists:
            raise UsageError(f"--input={given.url} does not exist")


def listed(given: Input, selection: Selection, carry: tuple[str, ...] = ()) -> Iterator[MediaRef]:
    """What an input names, as the tag job lists it: media, the rows of manifests, or tars."""
    refs = list_media(given.url, given.kind, selection if given.kind == "media" else None)
    if given.kind != "manifest":
        yield from refs
        return
    for manifest in refs:
        with open_object(manifest.uri) as file:
            yield from read_rows(file, manifest_kind(manifest.uri) or "", manifest.uri, carry)
