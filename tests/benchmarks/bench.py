"""What the benchmarks share: pictures and checkpoints made on the spot, and jobs measured in pairs.

Scripts import it by being run from this folder. torch is imported only where a model is made: the
peak memory of a child counts its parent's until it has started (see `measured`).
"""

from __future__ import annotations

import io
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple, TypeVar

import numpy as np
from PIL import Image, ImageDraw, ImageOps

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
DEMO_MODEL = "demo"

WORDS = [
    "airplane",
    "apple",
    "banana",
    "bicycle",
    "bird",
    "boat",
    "book",
    "car",
    "cat",
    "clock",
    "dog",
    "fish",
    "flower",
    "guitar",
    "hamburger",
    "horse",
    "house",
    "pizza",
    "train",
    "tree",
]

RESULT_MARK = "> "

Turn = TypeVar("Turn")


def result(line: str) -> None:
    """Print a line that run_all.py repeats in its summary."""
    print(f"{RESULT_MARK}{line}", flush=True)


@contextmanager
def scratch() -> Iterator[Path]:
    """A temporary folder."""
    with TemporaryDirectory(prefix="beamtag-bench-") as folder:
        yield Path(folder)


def machine() -> str:
    """The machine in words."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line for line in cpuinfo.read_text().splitlines() if "model name" in line]
        model = names[0].partition(":")[2].strip() if names else model
    gibibytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    cores = len(os.sched_getaffinity(0))
    return f"{cores} cores {model}, {gibibytes:.0f} GiB, load now {os.getloadavg()[0]:.1f}"


def natural_picture(seed: int, size: tuple[int, int]) -> Image.Image:
    """A picture that costs a decoder about what a photograph does: 1/f noise under some shapes."""
    rng = np.random.default_rng(seed)
    picture = Image.new("RGB", size, (128, 128, 128))
    grain, weight = 3, 0.5
    while grain < size[0]:
        grid = rng.integers(0, 256, (max(2, grain * size[1] // size[0]), grain, 3), np.uint8)
        # Colours change less than brightness does.
        grid[..., 1:] = grid[..., 1:] // 4 + grid[..., :1] // 4 * 3
        layer = Image.fromarray(grid).resize(size, Image.Resampling.BICUBIC)
        picture = Image.blend(picture, layer, weight)
        grain, weight = grain * 2, weight * 0.75
    picture = ImageOps.autocontrast(picture)
    draw = ImageDraw.Draw(picture)
    for _ in range(6):
        x, y = rng.integers(0, size[0]), rng.integers(0, size[1])
        across, down = rng.integers(size[1] // 16, size[1] // 3, 2)
        colour = tuple(rng.integers(0, 256, 3).tolist())
        shape = draw.ellipse if rng.random() < 0.5 else draw.rectangle
        shape((x, y, x + across, y + down), fill=colour)
    return picture


def make_jpegs(
    folder: Path,
    count: int,
    distinct: int,
    size: tuple[int, int],
    quality: int = 90,
    first: int = 0,
) -> int:
    """`count` JPEG files of `distinct` pictures, numbered from `first` on; bytes of one, mean.

    Each has bytes of its own, by a comment: what is the same would be embedded once.
    """
    folder.mkdir(parents=True, exist_ok=True)

    def encoded(seed: int) -> bytes:
        content = io.BytesIO()
        natural_picture(seed, size).save(content, "JPEG", quality=quality)
        return content.getvalue()

    with ThreadPoolExecutor() as pool:
        contents = list(pool.map(encoded, range(min(distinct, count))))
    for number in range(first, first + count):
        content = contents[number % len(contents)]
        comment = b"\xff\xfe\x00\x12" + b"%016d" % number
        # After the marker that a JPEG begins with.
        file = folder / f"picture-{number:08d}.jpg"
        file.write_bytes(content[:2] + comment + content[2:])
    return sum(map(len, contents)) // len(contents)


def random_checkpoint(folder: Path, architecture: str) -> str:
    """An open_clip architecture with random weights, as `--model` takes it."""
    import open_clip
    import torch
    from safetensors.torch import save_file

    config = {
        "model_cfg": open_clip.get_model_config(architecture),
        "preprocess_cfg": {
            "mean": open_clip.OPENAI_DATASET_MEAN,
            "std": open_clip.OPENAI_DATASET_STD,
            "interpolation": "bicubic",
            "resize_mode": "shortest",
        },
    }
    text = config["model_cfg"]["text_cfg"]
    if text.pop("hf_tokenizer_name", None):
        # A hub has it. Of random weights open_clip's own tokenizer means as much.
        text.pop("tokenizer_kwargs", None)
        text["vocab_size"] = 49408
    folder.mkdir(parents=True)
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    torch.manual_seed(0)
    model = open_clip.create_model(f"local-dir:{folder}", load_weights=False)
    state = {name: value.contiguous().clone() for name, value in model.state_dict().items()}
    save_file(state, folder / "open_clip_model.safetensors")
    return f"local-dir:{folder}"


def label_file(path: Path, words: Sequence[str] = WORDS) -> Path:
    """A label set of one prompt a word: encoding prompts is a model's cost and not what we time."""
    lines = [f"name: {path.stem}", 'templates: ["a picture of a {}"]', "labels:"]
    path.write_text("\n".join([*lines, *(f"  - {word}" for word in words)]) + "\n")
    return path


def job_arguments(inputs: Path, labels: Sequence[Path | str], output: Path, model: str) -> list:
    """The arguments of `pipelines.tag`, all else at its default."""
    return [
        f"--input={inputs}",
        *(f"--labels={file}" for file in labels),
        f"--output={output}",
        f"--model={model}",
        "--quiet",
    ]


def job_command(arguments: Sequence[str]) -> list[str]:
    """The job as a process of its own, to be started in `ROOT`."""
    return [sys.executable, "-m", "pipelines.tag", *arguments]


class Used(NamedTuple):
    """What a process took: seconds on the wall and of processors, and its peak resident set."""

    wall: float
    cpu: float
    peak_mebibytes: float


def measured(command: Sequence[str]) -> tuple[Used, str]:
    """Run a process to its end; gives what it took, and what it said on standard output.

    Linux carries the peak of the process that starts a child into the child's: whoever asks for it
    imports neither torch nor Beam.
    """
    started = time.perf_counter()
    child = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    with child.stdout:
        said = child.stdout.read()
    _, status, usage = os.wait4(child.pid, 0)
    wall = time.perf_counter() - started
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode != 0:
        raise SystemExit(f"{' '.join(command)} ended with {child.returncode}")
    return Used(wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024), said


def run_job(arguments: Sequence[str], output: Path) -> dict[str, Any]:
    """Run the job as a process of its own and give its run record."""
    subprocess.run(job_command(arguments), cwd=ROOT, check=True)
    return run_record(output)


def run_record(output: Path) -> dict[str, Any]:
    """The record of the only run under `output`; every item of it must be embedded."""
    (path,) = (output / "runs").glob("*.json")
    record: dict[str, Any] = json.loads(path.read_text())
    if record["status"] != "finished":
        raise SystemExit(f"the job did not finish: {record}")
    return record


def interleaved(
    first: Callable[[], Turn], second: Callable[[], Turn], pairs: int
) -> Iterator[tuple[Turn, Turn]]:
    """What both measure, turn about, after one unmeasured turn of each.

    Noise of the machine that lasts longer than a turn is in both halves of a pair.
    """
    first(), second()
    for _ in range(pairs):
        yield first(), second()


def spread(values: Sequence[float], digits: int = 2) -> str:
    """The median, and the range around it."""
    median = statistics.median(values)
    return f"{median:.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"
