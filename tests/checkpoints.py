"""Checkpoints made on the spot: real open_clip models of every kind, small, with random weights."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import tokenizers
import torch
import transformers
from safetensors.torch import save_file

OPENAI = {"mean": open_clip.OPENAI_DATASET_MEAN, "std": open_clip.OPENAI_DATASET_STD}
HALF = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}

TEXT = {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
VIT = {"image_size": 48, "layers": 2, "width": 64, "head_width": 32, "patch_size": 8}

WORDS = ("[PAD]", "[UNK]", "a", "photo", "of", "dog", "cat", "tree", "car", "house")
"""What the tokenizer of the kind `hf` knows."""

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
    "timm": {
        "model_cfg": {
            "embed_dim": 32,
            "custom_text": True,
            "vision_cfg": {
                "timm_model_name": "test_vit",
                "timm_model_pretrained": False,
                "timm_pool": "",
                "timm_proj": "linear",
                "image_size": 160,
            },
            "text_cfg": TEXT,
        },
        "preprocess_cfg": {**HALF, "interpolation": "bicubic", "resize_mode": "shortest"},
    },
    # Its text tower and its tokenizer are of transformers; make_checkpoint writes what they need.
    "hf": {
        "model_cfg": {
            "embed_dim": 32,
            "vision_cfg": VIT,
            "text_cfg": {
                "context_length": 16,
                "hf_tokenizer_name": "any",
                "hf_proj_type": "mlp",
                "hf_pooler_type": "mean_pooler",
            },
        },
        "preprocess_cfg": {**OPENAI, "interpolation": "bicubic", "resize_mode": "shortest"},
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
    folder: Path,
    kind: str = "vit",
    seed: int = 0,
    text: dict[str, Any] | None = None,
    vision: dict[str, Any] | None = None,
) -> Path:
    """A model folder as `local-dir:` takes it; `text` and `vision` change their parts of it."""
    torch.manual_seed(seed)
    config = copy.deepcopy(CONFIGS[kind])
    config["model_cfg"]["text_cfg"].update(text or {})
    config["model_cfg"]["vision_cfg"].update(vision or {})
    folder.mkdir(parents=True, exist_ok=True)
    if kind == "hf":
        config["model_cfg"]["text_cfg"]["hf_model_name"] = str(folder)
        make_transformers_files(folder)
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    # create_model without weights needs the config only; the weights are its random start.
    model = open_clip.create_model(f"local-dir:{folder}", pretrained_text=False)
    state = model.state_dict()
    # Random weights put all pictures close together; a few of our own spread them out.
    state = {
        name: value * 3 if name.endswith(("proj", "c_proj.weight")) and value.ndim == 2 else value
        for name, value in state.items()
    }
    save_weights(folder, state)
    return folder


def save_weights(folder: Path, state: Mapping[str, torch.Tensor]) -> None:
    """Write weights into a model folder, over those that are there."""
    save_file(
        {name: value.contiguous().clone() for name, value in state.items()},
        folder / "open_clip_model.safetensors",
    )


def make_transformers_files(folder: Path) -> None:
    """What transformers needs to know of a small BERT and of a tokenizer of a few words."""
    vocabulary = {word: place for place, word in enumerate(WORDS)}
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]"
    ).save_pretrained(folder)
    transformers.BertConfig(
        vocab_size=len(WORDS),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=16,
    ).save_pretrained(folder)


def save_big_vision(path: Path, model: Any) -> None:
    """Write a SigLIP-like model with timm's image tower as Google's big_vision saves it."""
    arrays: dict[str, torch.Tensor] = {"params/b": model.logit_bias.reshape(1)}
    arrays["params/t"] = model.logit_scale.reshape(1)

    def put(prefix: str, module: torch.nn.Module, weight: str = "scale") -> None:
        value = module.weight
        turned = value.permute(2, 3, 1, 0) if value.ndim == 4 else value.t()
        arrays[f"params/{prefix}/{weight}"] = turned
        arrays[f"params/{prefix}/bias"] = module.bias

    def put_block(
        prefix: str,
        norms: tuple[torch.nn.Module, torch.nn.Module],
        qkv: tuple[torch.Tensor, torch.Tensor],
        rest: tuple[torch.nn.Linear, torch.nn.Linear, torch.nn.Linear],
    ) -> None:
        attention = f"{prefix}/MultiHeadDotProductAttention_0"
        parts = zip(("query", "key", "value"), qkv[0].chunk(3), qkv[1].chunk(3), strict=True)
        for name, weight, bias in parts:
            arrays[f"params/{attention}/{name}/kernel"] = weight.T[:, None]
            arrays[f"params/{attention}/{name}/bias"] = bias[None]
        arrays[f"params/{attention}/out/kernel"] = rest[0].weight.T[None]
        arrays[f"params/{attention}/out/bias"] = rest[0].bias
        for number in range(2):
            put(f"{prefix}/LayerNorm_{number}", norms[number])
            put(f"{prefix}/MlpBlock_0/Dense_{number}", rest[1 + number], "kernel")

    image, text = model.visual.trunk, model.text
    put("img/embedding", image.patch_embed.proj, "kernel")
    arrays["params/img/cls"] = image.cls_token
    arrays["params/img/pos_embedding"] = image.pos_embed
    for number, block in enumerate(image.blocks):
        put_block(
            f"img/Transformer/encoderblock_{number}",
            (block.norm1, block.norm2),
            (block.attn.qkv.weight, block.attn.qkv.bias),
            (block.attn.proj, block.mlp.fc1, block.mlp.fc2),
        )
    put("img/Transformer/encoder_norm", image.norm)
    arrays["params/txt/Embed_0/embedding"] = text.token_embedding.weight
    arrays["params/txt/pos_embedding"] = text.positional_embedding[None]
    for number, block in enumerate(text.transformer.resblocks):
        put_block(
            f"txt/Encoder_0/encoderblock_{number}",
            (block.ln_1, block.ln_2),
            (block.attn.in_proj_weight, block.attn.in_proj_bias),
            (block.attn.out_proj, block.mlp.c_fc, block.mlp.c_proj),
        )
    put("txt/Encoder_0/encoder_norm", text.ln_final)
    put("txt/head", text.text_projection, "kernel")
    np.savez(path, **{name: value.detach().numpy() for name, value in arrays.items()})
