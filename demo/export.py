"""Write a checkpoint as the folder open_clip loads with `local-dir:`.

    python demo/export.py --work=FOLDER [--into=transforms/data/demo_model]

The averaged weights are stored in half precision. The token table grows back to the 49,408 rows of
the standard tokenizer; rows of tokens that no caption holds are zero.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import open_clip
import torch
from safetensors.torch import save_file
from torch import Tensor
from train import MODEL

DEFAULT = Path(__file__).parents[1] / "transforms" / "data" / "demo_model"


def weights(saved: dict) -> dict[str, Tensor]:  # type: ignore[type-arg]
    """Make the state of the whole model in float16 from a checkpoint of `train.py`."""
    state = {k: v for k, v in saved["average"].items() if k != "attn_mask"}
    name = "token_embedding.weight"
    table = torch.zeros(MODEL["text_cfg"]["vocab_size"], state[name].shape[1])
    table[saved["vocabulary"]] = state[name]
    state[name] = table
    return {k: (v.half() if v.is_floating_point() else v).contiguous() for k, v in state.items()}


def config() -> dict[str, object]:
    """Fill in open_clip's configuration file."""
    return {
        "model_cfg": MODEL,
        "preprocess_cfg": {
            "mean": list(open_clip.OPENAI_DATASET_MEAN),
            "std": list(open_clip.OPENAI_DATASET_STD),
            "interpolation": "bicubic",
            "resize_mode": "shortest",
        },
    }


def main() -> None:
    """Export, each file replaced whole."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="folder for all work files")
    parser.add_argument("--into", type=Path, default=DEFAULT)
    args = parser.parse_args()
    saved = torch.load(args.work / "checkpoint.pt")
    args.into.mkdir(parents=True, exist_ok=True)
    target = args.into / "open_clip_model.safetensors"
    partial = target.with_suffix(".partial")
    save_file(weights(saved), partial, metadata={"format": "pt"})
    partial.replace(target)
    target.chmod(0o644)
    text = json.dumps(config(), indent=2) + "\n"
    (args.into / "open_clip_config.json").write_text(text, encoding="utf-8")
    print(f"step {saved['step']}, {target.stat().st_size} bytes, {len(saved['vocabulary'])} tokens")


if __name__ == "__main__":
    main()
