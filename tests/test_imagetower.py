"""The image tower: its precisions, its size, what does not fit, and what is compiled."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from checkpoints import make_checkpoint
from conftest import picture

from transforms.imagetower import memory_of_machine, pixel_memory
from transforms.model import OpenClipModel
from transforms.modelstore import ModelError
from transforms.records import ModelSpec

ROOT = Path(__file__).parent.parent


def local(folder: Path, **changes) -> ModelSpec:
    return ModelSpec(f"local-dir:{folder}", device="cpu", **changes)


def pictures(model: OpenClipModel, count: int) -> np.ndarray:
    height, width = model.info.preprocess.size
    return np.stack([np.asarray(picture(width, height, seed)) for seed in range(count)])


@pytest.mark.parametrize("kind", ["vit", "siglip"])
def test_eight_bits_give_nearly_the_same_vectors(tmp_path, kind):
    folder = make_checkpoint(tmp_path / kind, kind)
    exact, lower = OpenClipModel(local(folder)), OpenClipModel(local(folder, precision="int8"))
    pixels = pictures(exact, 6)
    vectors = exact.encode_images(pixels)
    assert (vectors * lower.encode_images(pixels)).sum(axis=1).min() > 0.99
    # The words are not in 8 bits.
    assert lower.encode_texts(["a dog"]) == pytest.approx(exact.encode_texts(["a dog"]), abs=1e-6)


def test_a_tower_that_eight_bits_are_not_for(tmp_path):
    folder = make_checkpoint(tmp_path / "net", "resnet")
    with pytest.raises(ModelError, match="int8 is not for this model's images"):
        OpenClipModel(local(folder, precision="int8"))
    assert OpenClipModel(local(folder, precision="auto")).tower.precision in ("fp32", "bf16")


def test_auto_takes_a_precision_that_it_has_measured(vit, caplog):
    with caplog.at_level("INFO", "beamtag"):
        model = OpenClipModel(local(vit, precision="auto"))
    assert model.tower.precision in ("fp32", "bf16", "int8")
    (said,) = [
        r.message for r in caplog.records if "auto chose" in r.message and "fp32" in r.message
    ]
    assert said.startswith(f"precision: auto chose {model.tower.precision} (fp32 ")
    assert all(f"{name} " in said for name in ("bf16", "int8"))
    pixels = pictures(model, 4)
    exact = OpenClipModel(local(vit)).encode_images(pixels)
    assert (exact * model.encode_images(pixels)).sum(axis=1).min() > 0.99


def test_a_resnet_without_its_norms_is_the_same_resnet(tmp_path):
    folder = make_checkpoint(tmp_path / "net", "resnet")
    model = OpenClipModel(local(folder))
    norms = [m for m in model.tower._model.visual.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert norms == []
    theirs = open_clip.create_model(f"local-dir:{folder}").eval()
    pixels = pictures(model, 4)
    mean, std = (
        torch.tensor(values).reshape(1, 3, 1, 1)
        for values in (model.info.preprocess.mean, model.info.preprocess.std)
    )
    images = (torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255 - mean) / std
    with torch.inference_mode():
        expected = theirs.encode_image(images, normalize=True).numpy()
    assert model.encode_images(pixels) == pytest.approx(expected, abs=1e-5)


def test_a_compiled_tower_gives_the_same_vectors_of_full_batches_and_others(vit):
    model = OpenClipModel(local(vit, compiled=True, batch_size=4))
    assert model.tower.warm_up_seconds > 0
    pixels = pictures(model, 6)  # one full batch and half a batch
    expected = OpenClipModel(local(vit)).encode_images(pixels)
    assert model.encode_images(pixels) == pytest.approx(expected, abs=1e-4)


def test_the_size_is_found_on_the_first_batches(vit):
    model = OpenClipModel(local(vit))
    pixels = np.repeat(pictures(model, 4), 64, axis=0)
    first = model.encode_images(pixels)
    for _ in range(6):
        vectors = model.encode_images(pixels)
    assert model.tower.batch_size.found
    assert vectors == pytest.approx(first, abs=1e-5)
    assert first[[0, 64, 128, 192]] == pytest.approx(
        OpenClipModel(local(vit, batch_size=1)).encode_images(pixels[[0, 64, 128, 192]]), abs=1e-5
    )


LITTLE_MEMORY = """
import resource, sys
import numpy as np
from pathlib import Path
from transforms.model import OpenClipModel
from transforms.modelstore import ModelError
from transforms.records import ModelSpec

model = OpenClipModel(ModelSpec(f"local-dir:{sys.argv[1]}", device="cpu", batch_size=4096))
height, width = model.info.preprocess.size
pixels = np.random.default_rng(0).integers(0, 256, (4096, height, width, 3), np.uint8)
model.tower.batch_size._most = 16
expected = model.encode_images(pixels)
model.tower.batch_size._most = 4096
pages = int(Path("/proc/self/statm").read_text().split()[0])
most = pages * resource.getpagesize() + 96 * 1024 * 1024
resource.setrlimit(resource.RLIMIT_AS, (most, resource.RLIM_INFINITY))
vectors = model.encode_images(pixels)
resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
print(np.abs(vectors - expected).max() < 1e-5, model.tower.batch_size.value)
"""


def test_what_does_not_fit_is_halved_for_the_rest_of_the_run(vit):
    done = subprocess.run(
        [sys.executable, "-c", LITTLE_MEMORY, str(vit)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    same, size = done.stdout.split()
    assert same == "True"
    assert 1 <= int(size) < 4096
    assert "pictures at a time from here on" in done.stderr


def test_memory_of_this_machine():
    assert 2**28 < memory_of_machine() < 2**46
    pixels = pixel_memory((2, 3, 4, 3))
    assert (pixels.shape, pixels.dtype) == ((2, 3, 4, 3), np.uint8)
