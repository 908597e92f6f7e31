"""An output of coloured pictures, and what they show: what calibrate and adapt learn from."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.dataset as ds
from conftest import Done, encoded
from PIL import Image

from pipelines import tag

COLOURS = {"red": (210, 30, 30), "green": (30, 180, 40), "blue": (40, 60, 220), "grey": (130,) * 3}
EACH = 12

SHOWN = """\
# What is looked for, by pictures of it.
name: shown   # the name
top_k: 1
example_weight: 1
labels:
  - {name: red, examples: [examples/red.png]}     # like blood
  - name: green  # like grass
    examples: [examples/green.png]
  - name: blue
    threshold: 0.5  # to be written over
    examples: [examples/blue.png]
  - name: grey
    examples:
      - examples/grey.png
"""

LABELS = """\
# What is looked for.
name: colours   # the name
templates: ["a {}", "a photo of a {}"]
top_k: 1
labels:
  - red     # like blood
  - name: green
    id: verdant
  - blue
  - {name: grey}
  - pink    # of which there is no picture
"""


def coloured(folder: Path) -> None:
    """Noisy pictures in folders named by their colours."""
    random = np.random.default_rng(0)
    for name, colour in COLOURS.items():
        (folder / name).mkdir(parents=True)
        for number in range(EACH):
            noisy = np.array(colour) + random.normal(0, 40, (48, 48, 3)) + random.normal(0, 15, 3)
            image = Image.fromarray(noisy.clip(0, 255).astype(np.uint8))
            (folder / name / f"{number:02d}.png").write_bytes(encoded(image, "PNG"))


def make_output(root: Path, model: Path) -> Path:
    """`root/out`, and what is known of its pictures, which are gone again, but for examples."""
    coloured(root / "pictures")
    (root / "examples").mkdir()
    for name in COLOURS:
        shutil.copy(root / "pictures" / name / "00.png", root / "examples" / f"{name}.png")
    (root / "labels.yaml").write_text(LABELS)
    (root / "shown.yaml").write_text(SHOWN)
    arguments = [f"--input={root}/pictures", f"--labels={root}/labels.yaml", "--quiet"]
    assert tag.main([*arguments, f"--output={root}/out", f"--model=local-dir:{model}"]) == 0
    rows = [f"pictures/{name}/{at:02d}.png,{name}" for name in COLOURS for at in range(EACH)]
    (root / "truth.csv").write_text("\n".join(["uri,label", *rows]) + "\n")
    rows = ds.dataset(root / "out" / "predictions", partitioning="hive").to_table().to_pylist()
    # Who takes the tags for the truth finds them right.
    best = [f"{row['uri']},{row['label']}" for row in rows if row["rank"] == 1]
    (root / "tags.csv").write_text("\n".join(["uri,label", *best]) + "\n")
    shutil.rmtree(root / "pictures")
    return root


Run = Callable[..., Done]


def runner(main: Callable[[list[str]], int], root: Path, model: Path, capfd: Any) -> Run:
    """Start a job on that output; flags of None are left out, and True is a switch."""

    def run(**flags: Any) -> Done:
        defaults = {"output": root / "out", "labels": root / "labels.yaml"}
        named = {**defaults, "truth": root / "truth.csv", "model": f"local-dir:{model}", **flags}
        arguments = [
            f"--{name}" if value is True else f"--{name}={value}"
            for name, value in named.items()
            if value is not None
        ]
        capfd.readouterr()
        status = main(arguments)
        return Done(status, *capfd.readouterr())

    return run
