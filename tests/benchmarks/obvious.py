"""The program that anybody would write: open_clip and its own transform, a DataLoader, Parquet.

    python tests/benchmarks/obvious.py --pictures=FOLDER --checkpoint=FOLDER --written=FILE
        [--feed=loader|pool|ready] [--device=cpu|cuda] [--precision=fp32|bf16] [--batch_size=128]

`loader` is a torch DataLoader with a worker process a core; `pool` decodes in a pool of as many
threads, a batch ahead of the model; `ready` is the model alone, on tensors that are there (as many
as there are pictures). It needs torch, open_clip and pyarrow, and nothing of ours.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import open_clip
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

WORDS = ["cat", "dog", "house", "tree", "car", "boat", "bird", "flower", "book", "clock"]


class Pictures(Dataset):
    def __init__(self, paths: list[Path], transform: Any) -> None:
        self.paths = paths
        self.transform = transform

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.transform(Image.open(self.paths[index]))


def loaded(pictures: Pictures, batch_size: int, workers: int, pinned: bool) -> Iterator:
    return iter(DataLoader(pictures, batch_size, num_workers=workers, pin_memory=pinned))


def pooled(pictures: Pictures, batch_size: int, workers: int) -> Iterator:
    """Batches whose pictures are decoded by threads while the model has the one before."""
    with ThreadPoolExecutor(workers) as pool:
        waiting = None
        for start in range(0, len(pictures), batch_size):
            some = range(start, min(start + batch_size, len(pictures)))
            reading = [pool.submit(pictures.__getitem__, index) for index in some]
            if waiting:
                yield torch.stack([one.result() for one in waiting])
            waiting = reading
        if waiting:
            yield torch.stack([one.result() for one in waiting])


def ready(count: int, batch_size: int, size: tuple[int, int]) -> Iterator:
    tensors = torch.randn(min(count, batch_size), 3, *size)
    for start in range(0, count, batch_size):
        yield tensors[: min(batch_size, count - start)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=Path, required=True)
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--written", type=Path, required=True)
    parser.add_argument("--feed", choices=("loader", "pool", "ready"), default="loader")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    args = parser.parse_args()
    name = f"local-dir:{args.checkpoint}"
    model, _, transform = open_clip.create_model_and_transforms(
        name, device=args.device, precision=args.precision
    )
    tokenizer = open_clip.get_tokenizer(name)
    dtype = torch.bfloat16 if args.precision == "bf16" else torch.float32
    pictures = Pictures(sorted(args.pictures.iterdir()), transform)
    on_cuda = args.device == "cuda"
    if args.feed == "loader":
        batches = loaded(pictures, args.batch_size, args.workers, on_cuda)
    elif args.feed == "pool":
        batches = pooled(pictures, args.batch_size, args.workers)
    else:
        size = model.visual.image_size
        size = size if isinstance(size, tuple) else (size, size)
        batches = ready(len(pictures), args.batch_size, size)
    vectors, labels = [], []
    with torch.inference_mode():
        words = model.encode_text(tokenizer(WORDS).to(args.device), normalize=True)
        for batch in batches:
            images = batch.to(args.device, dtype, non_blocking=True)
            found = model.encode_image(images, normalize=True)
            labels += (found @ words.T).argmax(dim=1).tolist()
            vectors += list(found.float().cpu().numpy())
    paths = [str(path) for path in pictures.paths]
    pq.write_table(pa.table({"path": paths, "embedding": vectors, "label": labels}), args.written)


if __name__ == "__main__":
    main()
