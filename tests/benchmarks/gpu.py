"""From JPEG files to Parquet on a GPU, over the model alone and over decoding alone.

    python tests/benchmarks/gpu.py [--models=ViT-L-14,ViT-B-32] [--pairs=5] [--items=20000]

One command on a machine with a CUDA device, after `make setup` (torch, torchvision, open_clip and
simplejpeg do the work): bf16, random weights made on the spot, 640 x 480 JPEGs on the local disk.
Everything is a process of its own, turn about, and counts without what one picture takes
(throughput.py says how). Decoding alone is `--decode=fast` in as many threads as there are cores,
without anything else. Where there is no such device it says so, and ends with 3.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import bench
from run_all import NOT_MEASURED
from throughput import Case, Sides

TARGETS = {"ViT-L-14": ("model alone", 0.90), "ViT-B-32": ("smaller of the two", 0.85)}
ASK = "import torch; print(torch.cuda.get_device_name() if torch.cuda.is_available() else '')"


def device() -> str:
    """The GPU's name, empty where there is none; asked in a process of its own."""
    asked = subprocess.run([sys.executable, "-c", ASK], capture_output=True, text=True, check=True)
    return asked.stdout.strip()


def decode_alone(pictures: Path, model: str) -> float:
    """Pictures a second."""
    sys.path.insert(0, str(bench.ROOT))
    from transforms.decoding import ImageDecoder
    from transforms.modelstore import describe_model
    from transforms.records import ModelSpec

    preprocess = describe_model(ModelSpec(model)).preprocess
    decode = ImageDecoder(preprocess, 10**9, mode="fast")
    files = sorted(pictures.iterdir())
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(lambda file: decode(file.read_bytes()).width, files[:200]))
        started = time.perf_counter()
        list(pool.map(lambda file: decode(file.read_bytes()).width, files))
    return len(files) / (time.perf_counter() - started)


def measure(model: str, options: argparse.Namespace, name: str, folder: Path) -> None:
    """Measure a model and print it."""
    case = Case("gpu", model, options.items, (640, 480), {})
    sides = Sides(case, folder, options)
    ways = [("job", "fast"), ("job", "gpu"), ("program", "ready")]
    fixed = {side: sides.fixed(side) for side in ways}
    ratios: dict[str, list[float]] = {}
    for _ in range(options.pairs):
        alone = decode_alone(sides.pictures, sides.model)
        rates = {side: sides.rate(side, fixed[side]) for side in ways}
        of_model = rates["program", "ready"]
        print(
            f"  model alone {of_model:.0f}/s, decoding alone {alone:.0f}/s, "
            f"job {rates['job', 'fast']:.0f}/s, --decode=gpu {rates['job', 'gpu']:.0f}/s",
            flush=True,
        )
        for decode in ("fast", "gpu"):
            rate = rates["job", decode]
            for what, bound in (("model", of_model), ("smaller", min(of_model, alone))):
                ratios.setdefault(f"{decode} of the {what}", []).append(rate / bound)
    over, target = TARGETS.get(model, ("smaller of the two", 0.85))
    said = "; ".join(f"{of} {bench.spread(values)}" for of, values in ratios.items())
    bench.result(f"gpu, {name}, {model}, bf16: {said}; target {target} of the {over}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default=",".join(TARGETS))
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--items", type=int, default=20_000)
    parser.set_defaults(device="cuda", precision="bf16")
    args = parser.parse_args()
    print(bench.machine())
    name = device()
    if not name:
        print("no CUDA device here: nothing is measured")
        return NOT_MEASURED
    for model in args.models.split(","):
        with bench.scratch() as folder:
            measure(model, args, name, folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
