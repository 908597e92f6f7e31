"""Checkpoints made on the spot: real open_clip models of every kind, small, with random weights."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import open_clip
import torch
from safetensors.torch import save_file

OPENAI = {"mean": open_clip.OPENAI_DATASET_MEAN, "std": open_clip.OPENAI_DATASET_STD}
HALF = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}

TEXT = {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
VIT = {"image_size": 48, "layers": 2, "width": 64, "head_width": 32, "patch_size": 8}

CONFIGS: dict[str, dict[str, Any]] = {
    "vit": {
        "model_cfg": {"embed_dim": 32, "vision_cfg": VIT, "text_cfg": TEXT},
        "preprocess_cfg": {**OPENAI, "interpolation": "bicubic", "resize_mode": "shortest"},
    },
    "resnet": {
        "model_cfg": {
            "embed_dim": 32,
            "vision_cfg": {
                "image_size": 64,
                "layers": [1, 1, 1, 1],
                "width": 8,
                "head_width": 16,
                "patch_size": None,
            },
            "text_cfg": TEXT,
        },
        "preprocess_cfg": {**OPENAI, "interpolation": "bilinear", "resize_mode": "longest"},
    },
    # As open_clip describes SigLIP: pooled by attention, a bias on the logits, squashed pictures.
    "siglip": {
        "model_cfg": {
            "embed_dim": 32,
            "init_logit_bias": -10,
            "custom_text": True,
            "vision_cfg": {**VIT, "no_ln_pre": True, "pool_type": "avg", "attentional_pool": False},
            "text_cfg": {**TEXT, "pool_type": "last", "no_causal_mask": True, "proj_bias": True},
        },
        "preprocess_cfg": {**HALF, "interpolation": "bicubic", "resize_mode": "squash"},
    },
    "coca": {
        "model_cfg": {
            "embed_dim": 32,
            "custom_text": True,
            "vision_cfg": {
                **VIT,
                "attentional_pool": True,
                "attn_pooler_heads": 2,
                "output_tokens": True,
            },
            "text_cfg": {**TEXT, "embed_cls": True, "output_tokens": True},
            "multimodal_cfg": {
                "context_length": 16,
                "vocab_size": 49408,
                "width": 32,
                "heads": 2,
                "layers": 1,
                "attn_pooler_heads": 2,
            },
        },
        "preprocess_cfg": {**OPENAI, "interpolation": "bicubic", "resize_mode": "shortest"},
    },
}


def make_checkpoint(
    folder: Path, kind: str = "vit", seed: int = 0, text: dict[str, Any] | None = None
) -> Path:
    """A model folder as `local-dir:` takes it; `text` changes its text_cfg."""
    torch.manual_seed(seed)
    config = copy.deepcopy(CONFIGS[kind])
    config["model_cfg"]["text_cfg"].update(text or {})
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    # create_model without weights needs the config only; the weights are its random start.
    model = open_clip.create_model(f"local-dir:{folder}")
    state = model.state_dict()
    # Random weights put all pictures close together; a few of our own spread them out.
    state = {
        name: value * 3 if name.endswith(("proj", "c_proj.weight")) and value.ndim == 2 else value
        for name, value in state.items()
    }
    save_file(
        {name: value.contiguous().clone() for name, value in state.items()},
        folder / "open_clip_model.safetensors",
    )
    return folder
