"""JPEGs decoded in batches where the model is: on a CUDA device, by torchvision's nvJPEG.

The reading stage leaves those to it that are plain; what the device refuses is decoded by the CPU,
and is a failure where that refuses it too.
"""

from __future__ import annotations

import io
import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from PIL.JpegImagePlugin import JpegImageFile

from transforms import exif
from transforms.decoding import ImageDecoder
from transforms.fitting import fit_tensor
from transforms.progress import progress
from transforms.records import Batch, Effort, Failure, MediaError, Stage

if TYPE_CHECKING:
    import torch

logger = logging.getLogger("beamtag")

Pixels = npt.NDArray[np.uint8]

PIXELS_AT_ONCE = 64_000_000
"""How many pixels of originals are decoded together: 192 MB of them, and as much again in work."""


def decode_encoded(batch: Batch, decode: ImageDecoder, device: torch.device | str) -> Batch:
    """Fill in the rows of a batch's pixels that came encoded.

    A picture that can be decoded nowhere becomes a failure, or leaves its item to the text.
    """
    if not batch.encoded:
        return batch
    started = time.perf_counter()
    pictured = [index for index, item in enumerate(batch.media) if item.width is not None]
    on_cpu = replace(decode, mode="fast")
    lost: dict[int, MediaError] = {}
    for rows in _parts(batch, pictured):
        some = [batch.encoded[row] for row in rows]
        for row, data, image in zip(rows, some, _decode(some, device), strict=True):
            try:
                if image is None:
                    batch.pixels[row] = on_cpu(data.tobytes()).pixels
                else:
                    batch.pixels[row] = fit_tensor(image, _orientation(data), decode.preprocess)
            except MediaError as error:
                lost[row] = error
    effort = batch.effort.plus(Effort({"decode": time.perf_counter() - started}))
    filled = replace(batch, encoded={}, effort=effort)
    return _without(filled, {pictured[row]: error for row, error in lost.items()}, list(lost))


def _parts(batch: Batch, pictured: Sequence[int]) -> Iterator[list[int]]:
    """The encoded rows, in parts of about as many pixels as are decoded together."""
    part: list[int] = []
    pixels = 0
    for row in sorted(batch.encoded):
        item = batch.media[pictured[row]]
        pixels += (item.width or 0) * (item.height or 0)
        if part and pixels > PIXELS_AT_ONCE:
            yield part
            part, pixels = [], (item.width or 0) * (item.height or 0)
        part.append(row)
    yield part


def _decode(some: Sequence[Pixels], device: torch.device | str) -> list[torch.Tensor | None]:
    """`uint8[3, h, w]` on the device, for each JPEG; None for one that it refuses."""
    import torch
    from torchvision.io import ImageReadMode, decode_jpeg

    # Copies: torch warns of arrays that are not to be written to, as those of bytes are.
    tensors = [torch.from_numpy(data.copy()) for data in some]
    try:
        decoded: list[torch.Tensor | None] = decode_jpeg(tensors, ImageReadMode.RGB, device)
    except RuntimeError as error:
        if len(some) == 1:
            logger.warning("a JPEG goes to the CPU, for the device refused it: %s", error)
            return [None]
        middle = len(some) // 2
        return _decode(some[:middle], device) + _decode(some[middle:], device)
    return decoded


def _orientation(data: Pixels) -> int:
    return exif.orientation(JpegImageFile(io.BytesIO(data.tobytes())).info)


def _without(batch: Batch, lost: dict[int, MediaError], rows: Sequence[int]) -> Batch:
    """The batch without the pictures of these items, of which those rows of pixels are."""
    if not lost:
        return batch
    media = []
    failures = []
    for index, item in enumerate(batch.media):
        if index not in lost:
            media.append(item)
        elif item.text is not None:
            unused = f"image: {lost[index].reason}"
            media.append(replace(item, width=None, height=None, unused=unused))
        else:
            error = lost[index]
            failures.append(Failure(item.ref, Stage.DECODE, error.reason, str(error)))
    progress.add(failed=len(failures))
    return replace(
        batch,
        media=tuple(media),
        pixels=np.delete(batch.pixels, rows, axis=0),
        failures=(*batch.failures, *failures),
    )
