"""Whether what `--input` names is there to be listed, before any work."""

from __future__ import annotations

from collections.abc import Iterable

from pipelines.groups import UsageError
from pipelines.running import one_line
from transforms.listing import input_exists, list_media
from transforms.manifestrows import ManifestError
from transforms.manifests import check_manifest
from transforms.records import Input


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
