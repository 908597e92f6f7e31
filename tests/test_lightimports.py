"""What a run's process has imported, and that what was left out is there when it is wanted."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent

LOADED = """
import sys
import torch
from transforms.model import shared_model
from transforms.records import ModelSpec
import numpy as np

model = shared_model(ModelSpec("demo", device="cpu"))
model.encode_texts(["a cat"])
height, width = model.info.preprocess.size
model.encode_images(np.zeros((2, height, width, 3), np.uint8))
"""


def run(code: str) -> str:
    """What a process of its own prints."""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_model_runs_without_compiler_hub_and_other_towers() -> None:
    heavy = ["torch._dynamo", "sympy", "huggingface_hub", "transformers", "timm"]
    said = run(f"{LOADED}\nprint([name for name in {heavy} if name in sys.modules])")
    assert said.split() == ["[]"]


def test_what_was_left_out_is_there_when_it_is_called() -> None:
    said = run(f"""{LOADED}
from torchvision.ops import roi_align
boxes = torch.tensor([[0.0, 0.0, 0.0, 4.0, 4.0]])
print(roi_align(torch.ones(1, 1, 8, 8), boxes, 2).flatten().tolist())
print(torch.compile(lambda x: x + 1, backend="eager")(torch.ones(1)).tolist())
from torch._dynamo.utils import is_compile_supported
from torchvision.ops.roi_align import is_compile_supported as bound
print(bound("cpu") == is_compile_supported("cpu"))
from open_clip.pretrained import hf_hub_download
try:
    hf_hub_download("no repository/is called so", "x")
except Exception as error:
    print(type(error).__module__.partition(".")[0])
import huggingface_hub, transformers
print(callable(huggingface_hub.snapshot_download), transformers.__name__)
""")
    assert said.split("\n")[:-1] == [
        "[1.0, 1.0, 1.0, 1.0]",
        "[2.0]",
        "True",
        "huggingface_hub",
        "True transformers",
    ]


def test_whoever_asks_a_deferred_module_for_more_gets_the_module() -> None:
    said = run("""
import sys, types
from transforms.lightimports import _deferring
with _deferring({"colorsys": frozenset({"rgb_to_hsv"})}):
    from colorsys import rgb_to_hsv
    print(isinstance(rgb_to_hsv, types.FunctionType), sys.modules["colorsys"].__class__.__name__)
    from colorsys import ONE_THIRD
    print(sys.modules["colorsys"].__class__.__name__, round(ONE_THIRD, 2))
print(rgb_to_hsv(1.0, 0.0, 0.0))
""")
    assert said.split("\n")[:-1] == ["True _Deferred", "module 0.33", "(0.0, 1.0, 1.0)"]


def test_tables_are_made_without_pandas_and_can_be_given_to_it() -> None:
    said = run("""
import sys
from transforms import schemas
import pyarrow as pa
table = pa.table({"a": pa.array([1]), "b": ["x"]})
print("pandas" in sys.modules)
import pandas
print(table.to_pandas().equals(pandas.DataFrame({"a": [1], "b": ["x"]})))
print(pa.array(pandas.Series([1, 2])).to_pylist())
""")
    assert said.split("\n")[:-1] == ["False", "True", "[1, 2]"]


def test_beam_of_a_local_run_comes_without_other_stores_clients() -> None:
    said = run("""
import sys
from transforms.lightimports import import_beam
import_beam()
print([name for name in ("pandas", "boto3", "pymongo") if name in sys.modules])
from google.cloud import storage
import pandas
print(storage.Client.__name__, pandas.DataFrame({"a": [1]}).shape)
""")
    assert said.split("\n")[:-1] == ["[]", "Client (1, 1)"]
