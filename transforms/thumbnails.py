"""Small pictures of some items, read from their store now: what a page of HTML shows of them."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from PIL import Image

from transforms.decoding import ImageDecoder
from transforms.items import ItemReader
from transforms.records import Failure, MediaRef, Preprocess, ReadLimits

SIZE = 160
"""Pixels of a thumbnail's sides."""

READ_AT_ONCE = 16

DEADLINE_S = 30.0
"""For one object at most: a page can do without it."""

QUALITY = 80
"""Of JPEG: about 5 KB a picture."""

_AS_SHOWN = Preprocess(
    (SIZE, SIZE), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), resize_mode="longest", fill_color=255
)


def thumbnails(
    uris: Sequence[str], limits: ReadLimits, max_pixels: int, background: tuple[int, int, int]
) -> Iterator[tuple[str, str | None]]:
    """Of each uri a JPEG as a `data:` URI, or None where it cannot be read as a picture.

    Whatever is there now: a changed object is shown as it is.
    """
    limits = replace(limits, deadline_s=min(limits.deadline_s, DEADLINE_S))
    reader = ItemReader(ImageDecoder(_AS_SHOWN, max_pixels, background), limits)

    def shown(uri: str) -> tuple[str, str | None]:
        item = reader.read(MediaRef(uri, ""))
        if isinstance(item.outcome, Failure) or item.pixels is None:
            return uri, None
        buffer = io.BytesIO()
        Image.fromarray(item.pixels).save(buffer, "JPEG", quality=QUALITY)
        return uri, f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"

    with ThreadPoolExecutor(READ_AT_ONCE, thread_name_prefix="beamtag-thumbnails") as pool:
        yield from pool.map(shown, uris)
