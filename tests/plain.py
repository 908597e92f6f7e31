"""What open_clip itself makes of contents, with models and label sets, in plain lines."""

from __future__ import annotations

import io
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
import yaml
from archives import CONTENTS
from PIL import Image

from transforms.labelfile import read_label_set
from transforms.modelstore import describe_model
from transforms.records import ModelSpec

LABEL_FILES = {
    "few": {"name": "things", "labels": ["dog", "cat", "tree"], "top_k": 2},
    # The same file when somebody has changed it.
    "more": {"name": "things", "labels": ["dog", "cat", "tree", "car"], "top_k": 2},
    "best": {"name": "things", "labels": ["dog", "cat", "tree"], "top_k": 1},
    "sure": {"name": "others", "labels": ["dog", "house"], "threshold": 0.525},
}
TEMPLATES = ["a {}", "a photo of a {}"]


class Truth:
    """Models and label sets, and what open_clip itself makes of contents with them."""

    def __init__(self, models: Sequence[Path], folder: Path) -> None:
        self.models = [f"local-dir:{path}" for path in models]
        self.model_ids = [describe_model(ModelSpec(name)).model_id for name in self.models]
        self.label_files, self.label_set_ids = {}, {}
        for name, told in LABEL_FILES.items():
            path = folder / f"{name}.yaml"
            path.write_text(yaml.safe_dump({**told, "templates": TEMPLATES}))
            self.label_files[name] = path
            self.label_set_ids[name] = read_label_set(str(path)).label_set_id
        self.vector, self.tags = cache(self._vector), cache(self._tags)
        self._model = cache(open_clip.create_model_and_transforms)

    def _vector(self, model: int, modality: str, content: str) -> np.ndarray:
        clip, _, preprocess = self._model(self.models[model])
        clip.eval()
        data = CONTENTS[content]
        with torch.no_grad():
            if modality == "image":
                pixels = preprocess(Image.open(io.BytesIO(data)))[None]
                return clip.encode_image(pixels, normalize=True)[0].numpy()
            tokens = open_clip.get_tokenizer(self.models[model])([data.decode()])
            return clip.encode_text(tokens, normalize=True)[0].numpy()

    def _tags(self, model: int, label_set: str, modality: str, content: str) -> list[Any]:
        told, name = LABEL_FILES[label_set], self.models[model]
        clip, _, _ = self._model(name)
        with torch.no_grad():
            words = open_clip.build_zero_shot_classifier(
                clip, open_clip.get_tokenizer(name), told["labels"], TEMPLATES
            ).numpy()
            logits = float(clip.logit_scale.exp()) * self.vector(model, modality, content) @ words
        scores = np.exp(logits) / np.exp(logits).sum()
        order = np.argsort(-scores)[: told.get("top_k", 5)]
        least = told.get("threshold", -1.0)
        # Or rounding would decide.
        assert np.abs(scores - least).min() > 1e-4
        assert np.diff(np.sort(scores)).min() > 1e-5
        kept = [told["labels"][place] for place in order if scores[place] >= least]
        return list(enumerate(kept, 1)) or [(0, None)]
