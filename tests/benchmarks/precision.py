"""What each precision of the image tower gains on this processor, and what it does to vectors.

    python tests/benchmarks/precision.py [--models=demo,ViT-B-32,RN50] [--rounds=5] [--compile]

Rates are those of the tower alone on pixels that are there, turn about, as ratios to fp32. Drift is
1 - cosine of a picture's two vectors, over the median 1 - cosine of different pictures. Random
weights, but for the demo model's.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time

import bench
import numpy as np

sys.path.insert(0, str(bench.ROOT))

from transforms.decoding import ImageDecoder
from transforms.model import OpenClipModel
from transforms.modelstore import ModelError
from transforms.records import ModelSpec

PICTURES = 32


def pixels_for(model: OpenClipModel) -> np.ndarray:
    """Pictures that look like photographs, as the model takes them."""
    decode = ImageDecoder(model.info.preprocess, 10**9)
    with bench.scratch() as folder:
        bench.make_jpegs(folder / "p", PICTURES, PICTURES, (640, 480))
        files = sorted((folder / "p").iterdir())
        return np.stack([decode(file.read_bytes()).pixels for file in files])


def drift(vectors: np.ndarray, exact: np.ndarray) -> np.ndarray:
    """For each picture, as the module says."""
    exact, vectors = exact.astype(np.float64), vectors.astype(np.float64)
    between = 1 - exact @ exact.T
    return (1 - (vectors * exact).sum(axis=1)) / np.median(between[np.triu_indices(len(exact), 1)])


def measure(name: str, spec: str, rounds: int, compiled: bool) -> None:
    """Measure a model and print it."""
    towers = {}
    for precision in ("fp32", "bf16", "int8"):
        try:
            towers[precision] = OpenClipModel(
                ModelSpec(spec, device="cpu", precision=precision, batch_size=PICTURES)
            )
        except ModelError as error:
            print(f"  {name}: {error}")
    if compiled:
        towers["fp32, compiled"] = OpenClipModel(
            ModelSpec(spec, device="cpu", batch_size=PICTURES, compiled=True)
        )
    pixels = pixels_for(towers["fp32"])
    seconds: dict[str, list[float]] = {precision: [] for precision in towers}
    for turn in range(rounds + 1):
        for precision, model in towers.items():
            started = time.perf_counter()
            model.encode_images(pixels)
            if turn:  # The first warms up.
                seconds[precision].append(time.perf_counter() - started)
    exact = towers["fp32"].encode_images(pixels)
    for precision, model in towers.items():
        gains = [a / b for a, b in zip(seconds["fp32"], seconds[precision], strict=True)]
        drifts = drift(model.encode_images(pixels), exact)
        warm = model.tower.warm_up_seconds
        bench.result(
            f"precision, {name}, {precision}: {bench.spread(gains)} times fp32 "
            f"({PICTURES / statistics.median(seconds[precision]):.1f} pictures/s); drift "
            f"{np.median(drifts):.5f}, 99th percentile {np.percentile(drifts, 99):.5f}; "
            f"ready in {warm:.1f} s"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default="demo,ViT-B-32,RN50")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--compile", action="store_true")
    args = parser.parse_args()
    print(bench.machine())
    for name in args.models.split(","):
        with bench.scratch() as folder:
            spec = name if name == bench.DEMO_MODEL else bench.random_checkpoint(folder / "m", name)
            measure(name, spec, args.rounds, args.compile)


if __name__ == "__main__":
    main()
