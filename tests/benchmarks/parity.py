"""The job's vectors and tags against open_clip's own preprocess and model, picture by picture.

    python tests/benchmarks/parity.py [--images=FOLDER] [--model=MODEL ...]

By default on the demo archive, with the demo model and with ViT-B-32 of random weights (whose
tags mean nothing, but must be the same ones). open_clip's preprocess drops transparency and does
not turn pictures upright; the job lays them on white and turns them, so its side gets pictures
that Pillow has turned and laid on white already. 16-bit pictures are not in the demo archive.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import bench
import numpy as np
import open_clip
import pyarrow.parquet as pq
import torch
from PIL import Image, ImageOps

sys.path.insert(0, str(bench.ROOT))

from pipelines.options import read_label_set

LABELS = "everyday"
RANDOM = "ViT-B-32"


@dataclass(frozen=True, slots=True)
class Answers:
    """What one way gave: a vector and a best label for each picture, by its URI."""

    vectors: dict[str, np.ndarray]
    best: dict[str, str]


def by_job(images: Path, model: str, output: Path) -> Answers:
    """What the job writes; top 1 whatever it scores."""
    arguments = bench.job_arguments(images, [LABELS], output, model)
    bench.run_job([*arguments, "--decode=exact", "--top_k=1", "--threshold=0"], output)
    vectors, best = {}, {}
    for path in output.glob("embeddings/**/*.parquet"):
        for row in pq.ParquetFile(path).read(columns=["uri", "embedding"]).to_pylist():
            vectors[row["uri"]] = np.array(row["embedding"], np.float32)
    for path in output.glob("predictions/**/*.parquet"):
        for row in pq.ParquetFile(path).read(columns=["uri", "label"]).to_pylist():
            best[row["uri"]] = row["label"]
    return Answers(vectors, best)


@torch.inference_mode()
def by_open_clip(uris: Sequence[str], model_name: str) -> Answers:
    """open_clip's way, as its README shows it, one picture at a time."""
    model, _, preprocess = open_clip.create_model_and_transforms(model_name)
    model.eval()
    tokenizer = open_clip.get_tokenizer(model_name)
    label_set = read_label_set(LABELS)
    labels = torch.stack(
        [
            model.encode_text(tokenizer(label_set.prompts_of(label)), normalize=True).mean(0)
            for label in label_set.labels
        ]
    )
    labels = torch.nn.functional.normalize(labels, dim=-1)
    vectors, best = {}, {}
    for uri in uris:
        picture = preprocess(_on_white(Image.open(uri))).unsqueeze(0)
        vector = model.encode_image(picture, normalize=True)
        vectors[uri] = vector[0].numpy()
        best[uri] = label_set.labels[int((vector @ labels.T).argmax())].name
    return Answers(vectors, best)


def _on_white(image: Image.Image) -> Image.Image:
    image = ImageOps.exif_transpose(image)
    if not image.has_transparency_data:
        return image.convert("RGB")
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


def compare(images: Path, model: str, name: str, scratch: Path) -> None:
    """Measure a model and print it."""
    ours = by_job(images, model, scratch / f"output-{name}")
    demo = bench.ROOT / "transforms" / "data" / "demo_model"
    theirs = by_open_clip(
        list(ours.vectors), f"local-dir:{demo}" if model == bench.DEMO_MODEL else model
    )
    cosines = [float(ours.vectors[uri] @ theirs.vectors[uri]) for uri in ours.vectors]
    same = [ours.best[uri] == theirs.best[uri] for uri in ours.vectors]
    # How near two different pictures are: a cosine of 1 says nothing where all are near 1.
    matrix = np.stack(list(theirs.vectors.values()))
    apart = np.median((matrix @ matrix.T)[np.triu_indices(len(matrix), 1)])
    bench.result(
        f"parity, {name}, {len(cosines)} pictures: cosine median {np.median(cosines):.7f}, "
        f"minimum {min(cosines):.7f} (of two different pictures: {apart:.3f}); "
        f"equal top-1 {np.mean(same):.1%}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--images", type=Path, default=bench.ROOT / "transforms" / "data" / "demo_archive"
    )
    parser.add_argument("--model", action="append", help="`demo`, local-dir:PATH ...")
    args = parser.parse_args()
    images = args.images.resolve()
    with bench.scratch() as folder:
        models = args.model or [bench.DEMO_MODEL, bench.random_checkpoint(folder / RANDOM, RANDOM)]
        for model in models:
            compare(images, model, model.rstrip("/").split("/")[-1], folder)


if __name__ == "__main__":
    main()
