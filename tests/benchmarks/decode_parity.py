"""What each way of decoding does to vectors and tags, held against `--decode=exact`.

    python demo/heldout.py --work=FOLDER --into=build/heldout     (once; see demo/README.md)
    python tests/benchmarks/decode_parity.py [--pictures=100] [--set=build/heldout]

Drift is 1 - cosine of a picture's two vectors, over the median 1 - cosine of different pictures:
random weights put all pictures close together, so that a bare cosine says little. On pictures that
cost a decoder what photographs do, of several sizes, for the demo model and for a ViT and a ResNet
of random weights; then, for the demo model, on its held-out drawings as JPEGs of several sizes. The
line of `exact` holds it against open_clip's own preprocess. `gpu` is decoded on the CUDA device or,
where there is none, by the same code on the CPU, which is said.
"""

from __future__ import annotations

import argparse
import csv
import io
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import bench
import numpy as np
import torch
import yaml
from demo_accuracy import MISSING_SET
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image

sys.path.insert(0, str(bench.ROOT))

from transforms.decoding import ImageDecoder
from transforms.devicedecoding import decode_encoded
from transforms.model import OpenClipModel
from transforms.records import Batch, BatchPosition, DecodedMedia, MediaRef, ModelSpec

PHOTOS = [(640, 480), (480, 640), (1024, 768), (1920, 1440), (4032, 3024)]
DRAWINGS = [(256, 256), (640, 480), (1920, 1440)]
RANDOM = ("ViT-B-32", "RN50")
BOUND, TAGS_BOUND = 0.05, 0.005
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
GPU = "gpu" if DEVICE == "cuda" else "gpu (its code on the CPU)"
TOGETHER = 32


class Lab:
    """A model, and what it makes of JPEGs by each way of decoding."""

    def __init__(self, name: str, spec: str, words: dict[str, np.ndarray] | None = None) -> None:
        self.name = name
        self._model = OpenClipModel(ModelSpec(spec))
        self._decode = ImageDecoder(self._model.info.preprocess, 10**9)
        self.words = words or {"words": self.labels(bench.WORDS, ["a picture of a {}"])}

    def labels(self, words: Sequence[str], templates: Sequence[str]) -> np.ndarray:
        """A vector for each word."""
        means = [
            self._model.encode_texts([template.format(word) for template in templates]).mean(axis=0)
            for word in words
        ]
        return np.stack([mean / np.linalg.norm(mean) for mean in means])

    def vectors(self, pictures: Sequence[bytes]) -> dict[str, np.ndarray]:
        """`float64[N, D]` by each way."""
        ways = {
            "open_clip": self._open_clips,
            "exact": replace(self._decode, mode="exact"),
            "fast": replace(self._decode, mode="fast"),
        }
        found: dict[str, list[np.ndarray]] = {name: [] for name in (*ways, GPU)}
        with ThreadPoolExecutor() as pool:
            for start in range(0, len(pictures), TOGETHER):
                some = pictures[start : start + TOGETHER]
                for name, way in ways.items():
                    pixels = np.stack([done.pixels for done in pool.map(way, some)])
                    found[name].append(self._model.encode_images(pixels))
                found[GPU].append(self._model.encode_images(self._on_device(some)))
        return {name: np.concatenate(parts).astype(np.float64) for name, parts in found.items()}

    def _open_clips(self, data: bytes) -> DecodedMedia:
        preprocess = self._decode.preprocess
        transform = image_transform_v2(PreprocessCfg(size=preprocess.size), is_train=False)
        image = Image.open(io.BytesIO(data))
        for step in transform.transforms[:-2]:
            image = step(image)
        return self._decode(data)._replace(pixels=np.asarray(image))

    def _on_device(self, pictures: Sequence[bytes]) -> np.ndarray:
        decode = replace(self._decode, mode="gpu")
        done = [decode(data) for data in pictures]
        media = tuple(
            DecodedMedia(MediaRef(str(row), ""), "", 0, each.width, each.height)
            for row, each in enumerate(done)
        )
        pixels = np.zeros((len(done), *decode.preprocess.size, 3), np.uint8)
        batch = Batch(BatchPosition("", 0, True), media, pixels)
        encoded = {row: each.pixels for row, each in enumerate(done)}
        return decode_encoded(replace(batch, encoded=encoded), decode, DEVICE).pixels

    def compare(self, what: str, pictures: Sequence[bytes]) -> bool:
        """Print a line for each way; whether `fast` is within the bounds."""
        vectors = self.vectors(pictures)
        exact = vectors["exact"]
        apart = np.median(_distances(exact[:, None], exact[None])[np.triu_indices(len(exact), 1)])
        holds = True
        for way in ("exact", "fast", GPU):
            other = vectors["open_clip"] if way == "exact" else exact
            drift = _distances(vectors[way], other) / apart
            differ = {
                name: np.mean((vectors[way] @ words.T).argmax(1) != (other @ words.T).argmax(1))
                for name, words in self.words.items()
            }
            told = ", ".join(f"{name} {share:.2%}" for name, share in differ.items())
            bench.result(
                f"{way}, {self.name}, {len(pictures)} {what}: drift median "
                f"{np.median(drift):.6f}, 99th percentile {np.percentile(drift, 99):.6f}; top-1 "
                f"tags that differ: {told}"
            )
            if way == "fast":
                holds = bool(np.percentile(drift, 99) <= BOUND)
                if self.name == bench.DEMO_MODEL and "drawings" in what:
                    holds = holds and max(differ.values()) <= TAGS_BOUND
        return holds


def _distances(some: np.ndarray, others: np.ndarray) -> np.ndarray:
    """1 - cosine of unit vectors, exact also where it is nearly nothing."""
    return ((some - others) ** 2).sum(axis=-1) / 2


def photos(size: tuple[int, int], count: int) -> list[bytes]:
    """Pictures with as much detail as photographs, as JPEG."""
    with ThreadPoolExecutor() as pool:
        return list(pool.map(lambda seed: _jpeg(bench.natural_picture(seed, size)), range(count)))


def drawings(folder: Path, size: tuple[int, int]) -> list[bytes]:
    """The held-out drawings on white ground of this size, as JPEG."""
    with (folder / "truth.csv").open(newline="", encoding="utf-8") as file:
        paths = [folder / row["path"] for row in csv.DictReader(file)]

    def drawn(path: Path) -> bytes:
        side = min(size)
        image = Image.open(path).convert("RGB").resize((side, side), Image.Resampling.LANCZOS)
        ground = Image.new("RGB", size, "white")
        ground.paste(image, ((size[0] - side) // 2, (size[1] - side) // 2))
        return _jpeg(ground)

    with ThreadPoolExecutor() as pool:
        return list(pool.map(drawn, paths))


def _jpeg(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=int, default=100, help="photos of each size; half of 4K")
    parser.add_argument("--set", type=Path, default=bench.ROOT / "build" / "heldout")
    args = parser.parse_args()
    holds = []
    with bench.scratch() as scratch:
        demo = Lab(bench.DEMO_MODEL, bench.DEMO_MODEL)
        labs = [demo]
        labs += [Lab(name, bench.random_checkpoint(scratch / name, name)) for name in RANDOM]
        for size in PHOTOS:
            count = args.pictures if max(size) < 4000 else args.pictures // 2
            pictures = photos(size, count)
            holds += [lab.compare(f"photos of {size[0]} x {size[1]}", pictures) for lab in labs]
        folder = args.set.resolve()
        if not (folder / "truth.csv").exists():
            bench.result(f"drawings: not measured: no {folder}/truth.csv (see demo/README.md)")
            return MISSING_SET
        demo.words = {}
        for name in ("everyday20", "categories15"):
            told = yaml.safe_load((bench.HERE / f"{name}.yaml").read_text())
            demo.words[name] = demo.labels(told["labels"], told["templates"])
        for size in DRAWINGS:
            pictures = drawings(folder, size)
            holds.append(demo.compare(f"held-out drawings of {size[0]} x {size[1]}", pictures))
    bench.result(
        f"decode parity: the bounds of fast (99th percentile at most {BOUND}; at most "
        f"{TAGS_BOUND:.1%} of the drawings' tags) {'hold' if all(holds) else 'DO NOT HOLD'}"
    )
    return 0 if all(holds) else 1


if __name__ == "__main__":
    sys.exit(main())
