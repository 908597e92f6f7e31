"""Embedded colour profiles: pixels of any of them to sRGB, which is what models were trained on.

Relative colorimetric with black point compensation: colours that sRGB has stay what they are, and
white and black of a print profile become white and black. For the matrix profiles of cameras and
screens every intent is the same. Profiles that are sRGB in all but name change nothing, so that
their pictures keep the pixels that a loader without colour management gives; broken profiles are
ignored, as browsers do.
"""

from __future__ import annotations

import hashlib
import io
import threading
from collections import OrderedDict
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageCms

Recolour = Callable[[Image.Image], Image.Image]

MAX_PROFILE_BYTES = 4 * 1024 * 1024
"""Larger profiles are ignored: those of printing presses have one to three million bytes."""

_REMEMBERED = 32
"""How many profiles' transforms are kept: a large one takes about two megabytes."""

_SAME = 2
"""Levels of 256 within which a profile counts as sRGB: the rounding of its many editions."""

# What lcms calls the colours of a profile, by the mode of the picture it is embedded in.
_SPACES = {"RGB": "RGB ", "RGBA": "RGB ", "L": "GRAY", "CMYK": "CMYK"}

# Of scanners, screens, printers and colour spaces: profiles that say what colours look like.
_CLASSES = ("scnr", "mntr", "prtr", "spac")

# Without lcms's cache of the last pixel, one transform may serve many threads at once.
_FLAGS = ImageCms.Flags.BLACKPOINTCOMPENSATION | ImageCms.Flags.NOCACHE


def plain(image: Image.Image) -> Image.Image:
    """The picture in RGB by Pillow's own conversion, without any profile."""
    return image if image.mode == "RGB" else image.convert("RGB")


def _as_is(image: Image.Image) -> Image.Image:
    return image


class _Transforms:
    """Transforms to sRGB by mode and profile, the last few used; one is built at a time."""

    def __init__(self) -> None:
        self._known: OrderedDict[tuple[str, bytes], ImageCms.ImageCmsTransform | None] = (
            OrderedDict()
        )
        self._lock = threading.Lock()

    def get(self, profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
        """The transform from `mode`; None where there is nothing to change, or no way to."""
        key = (mode, hashlib.sha256(profile).digest())
        with self._lock:
            if key not in self._known:
                self._known[key] = _build(profile, mode)
                if len(self._known) > _REMEMBERED:
                    self._known.popitem(last=False)
            self._known.move_to_end(key)
            return self._known[key]


_SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
_transforms = _Transforms()


def to_srgb(profile: object, mode: str) -> Recolour:
    """What turns pictures of `mode` ("RGB", "RGBA", "L", "CMYK") and this ICC profile into sRGB.

    RGBA stays RGBA, everything else becomes RGB. `profile` is what Pillow found: bytes, or not.
    """
    otherwise = _as_is if mode == "RGBA" else plain
    if not isinstance(profile, bytes) or not 128 < len(profile) <= MAX_PROFILE_BYTES:
        return otherwise
    transform = _transforms.get(profile, mode)
    return otherwise if transform is None else transform.apply


def _build(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if source.profile.xcolor_space != _SPACES.get(mode):
            return None
        if source.profile.device_class not in _CLASSES:
            return None
        transform = ImageCms.ImageCmsTransform(
            source,
            _SRGB,
            mode,
            "RGBA" if mode == "RGBA" else "RGB",
            ImageCms.Intent.RELATIVE_COLORIMETRIC,
            flags=_FLAGS,
        )
        return None if _changes_nothing(transform, mode) else transform
    # What lcms says of a profile that it cannot use: Pillow passes on several kinds.
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return None


def _changes_nothing(transform: ImageCms.ImageCmsTransform, mode: str) -> bool:
    """Whether colours from all over the cube come out as they went in."""
    if mode == "CMYK":
        return False
    steps = np.arange(0, 256, 17, dtype=np.uint8)
    cube = np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(64, 64, 3)
    before = Image.fromarray(cube).convert(mode)
    after = np.asarray(transform.apply(before).convert("RGB"), dtype=np.int16)
    wanted = np.asarray(before.convert("RGB"), dtype=np.int16)
    return bool(np.abs(after - wanted).max() <= _SAME)
