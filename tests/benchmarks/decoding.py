"""Decoding alone: JPEG bytes to a model's pixels, against open_clip's own transform.

    python tests/benchmarks/decoding.py [--rounds=5] [--seconds=0.4]

In every round each way has its turn over the same pictures in memory, so that the machine's noise
is in all of them. Figures are medians over the rounds, with their range, of the ratio to
open_clip's transform of the same round: of pictures a second and, in brackets, by processor time.
Beside the job's own two ways stand those that were looked at: Pillow's `draft`, and simplejpeg with
Pillow's resize behind it.
"""

from __future__ import annotations

import argparse
import io
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import bench
import numpy as np
import simplejpeg
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile

sys.path.insert(0, str(bench.ROOT))

from transforms.decoding import decode_image
from transforms.fastjpeg import reduction
from transforms.fitting import fit
from transforms.records import Preprocess

SIZES = {(640, 480): 24, (1920, 1440): 8, (4032, 3024): 2}
"""How many different pictures there are of each size."""

TARGETS = (64, 224)
"""The demo model's input, and that of most others."""

BASE = "open_clip's transform"
Way = Callable[[bytes], object]


def ways(target: int) -> dict[str, Way]:
    """The ways from a JPEG to pixels, by what they are called; the first is the base."""
    from open_clip.transform import PreprocessCfg, image_transform_v2

    preprocess = Preprocess((target, target), (0.0,) * 3, (1.0,) * 3)
    transform = image_transform_v2(PreprocessCfg(size=(target, target)), is_train=False)

    def draft(data: bytes) -> object:
        image = JpegImageFile(io.BytesIO(data))
        image.draft("RGB", (target, target))
        return np.asarray(fit(image, preprocess))

    def reduced(data: bytes) -> object:
        image = JpegImageFile(io.BytesIO(data))
        factor = reduction(image.size, 1, preprocess)
        least = {"min_width": image.width // factor, "min_height": image.height // factor}
        pixels = simplejpeg.decode_jpeg(data, "RGB", **least)
        return np.asarray(fit(Image.fromarray(pixels), preprocess))

    return {
        BASE: lambda data: transform(Image.open(io.BytesIO(data))),
        "exact": lambda data: decode_image(data, preprocess, 10**9),
        "fast": lambda data: decode_image(data, preprocess, 10**9, mode="fast"),
        "Pillow's draft": draft,
        "simplejpeg and Pillow": reduced,
    }


class Rate(NamedTuple):
    """Pictures a second, on the wall and of processors."""

    wall: float
    cpu: float


def rates(
    ways: dict[str, Way], pictures: list[bytes], threads: int, rounds: int, seconds: float
) -> dict[str, list[Rate]]:
    """How fast each way is, round by round, after one that is not measured."""
    found: dict[str, list[Rate]] = {name: [] for name in ways}
    with ThreadPoolExecutor(threads) as pool:
        for number in range(rounds + 1):
            for name, way in ways.items():
                began, cpu, count = time.perf_counter(), time.process_time(), 0
                while time.perf_counter() - began < seconds:
                    count += len(list(pool.map(way, pictures * threads)))
                if number:
                    wall, cpu = time.perf_counter() - began, time.process_time() - cpu
                    found[name].append(Rate(count / wall, count / cpu))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.4, help="a turn, at least")
    args = parser.parse_args()
    for size, distinct in SIZES.items():
        pictures = []
        for seed in range(distinct):
            buffer = io.BytesIO()
            bench.natural_picture(seed, size).save(buffer, "JPEG", quality=90)
            pictures.append(buffer.getvalue())
        for target in TARGETS:
            for threads in (1, 2):
                found = rates(ways(target), pictures, threads, args.rounds, args.seconds)
                base = found[BASE]
                told = [f"{BASE} {statistics.median(rate.wall for rate in base):.0f} pictures/s"]
                for name, rate in found.items():
                    if name != BASE:
                        pairs = list(zip(rate, base, strict=True))
                        wall = bench.spread([own.wall / other.wall for own, other in pairs])
                        cpu = statistics.median(own.cpu / other.cpu for own, other in pairs)
                        told.append(f"{name} {wall} [{cpu:.2f}]")
                where = f"{size[0]} x {size[1]} to {target}, threads {threads}"
                bench.result(f"decoding, {where}: {'; '.join(told)}")


if __name__ == "__main__":
    main()
