"""The job against the plain loop that anybody would write with open_clip."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
import yaml
from checkpoints import CONFIGS, make_checkpoint
from conftest import Job, encoded, picture
from PIL import Image

PICTURES = 1000
SHAPES = [(96, 72), (72, 96), (80, 80), (120, 50)]


@pytest.fixture(scope="module")
def archive(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("jpegs")
    for number in range(PICTURES):
        width, height = SHAPES[number % len(SHAPES)]
        data = encoded(picture(width, height, number), "JPEG", quality=90)
        (folder / f"{number:05d}.jpg").write_bytes(data)
    return folder


def plain_loop(model_folder: Path, archive: Path, labels: dict) -> tuple[np.ndarray, list[str]]:
    """Embeddings and best labels by open_clip's own preprocess, model and classifier."""
    name = f"local-dir:{model_folder}"
    model, _, preprocess = open_clip.create_model_and_transforms(name)
    model.eval()
    classifier = open_clip.build_zero_shot_classifier(
        model, open_clip.get_tokenizer(name), labels["labels"], labels["templates"]
    )
    vectors = []
    paths = sorted(archive.iterdir())
    with torch.no_grad():
        for start in range(0, len(paths), 100):
            images = [preprocess(Image.open(path)) for path in paths[start : start + 100]]
            vectors.append(model.encode_image(torch.stack(images), normalize=True))
    embeddings = torch.cat(vectors)
    best = (embeddings @ classifier).argmax(dim=1)
    return embeddings.numpy(), [labels["labels"][index] for index in best]


@pytest.mark.parametrize("kind", sorted(CONFIGS))
def test_the_job_equals_the_plain_loop(kind, job: Job, labels, archive, tmp_path):
    model = make_checkpoint(tmp_path / kind, kind)
    done = job(
        input=archive, model=f"local-dir:{model}", shard_size=300, batch_size=64, decode="exact"
    )
    assert done.status == 0, done.err
    expected, names = plain_loop(model, archive, yaml.safe_load(labels.read_text()))

    rows = done.table("embeddings")
    ours = np.array([row["embedding"] for row in rows], dtype=np.float32)
    assert len(ours) == PICTURES
    assert (ours * expected).sum(axis=1).min() >= 0.9999
    tags = [row["label"] for row in done.table("predictions") if row["rank"] == 1]
    assert tags == names
