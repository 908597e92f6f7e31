"""A model's text side: its tokenizer, and its text tower without its image tower. No Beam.

The tower's model is built from its own configuration with the smallest image tower there is, which
then is thrown away, and of the weights' file only what is left is read.
"""

from __future__ import annotations

import copy
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transforms.modelstore import LocatedModel, first_line

if TYPE_CHECKING:
    import torch

LONG_WORD = 200
"""Characters. The time that a tokenizer takes for a word may grow with its square."""

_LONG_WORD = re.compile(rf"(\S{{{LONG_WORD}}})(?=\S)")

CACHED_WORDS = 50_000
"""How many words open_clip's own tokenizer may remember; left alone it keeps every one."""

_OTHERS = ("visual", "text_decoder")
"""The parts of open_clip's models that `encode_text` does without; the second is CoCa's."""

_SMALLEST_VISUAL = {"layers": 1, "width": 8, "head_width": 8, "patch_size": 8, "image_size": 8}
_SMALLEST_DECODER = {"layers": 1, "width": 8, "heads": 1}


class TowerError(Exception):
    """No text tower on its own: the whole model may still load, or else can say what is wrong."""


def load_text_tower(located: LocatedModel) -> Any:
    """An open_clip model on the CPU that has `encode_text`, scale and bias, and no image tower.

    Every weight of what it has comes from the checkpoint, as `open_clip.create_model` would load
    it. Raises `TowerError`.
    """
    try:
        model = _without_weights(located.config)
        weights = _as_the_model_wants(read_text_weights(located.weights), model)
        model.load_state_dict(weights, strict=True)
    except TowerError:
        raise
    # As of the whole model: anything can be wrong with a checkpoint or with its configuration.
    except Exception as error:
        raise TowerError(first_line(error)) from error
    return model


def _without_weights(config: Mapping[str, Any]) -> Any:
    """The model of a configuration with random weights and only the parts that text needs."""
    from open_clip.coca_model import CoCa
    from open_clip.model import CLIP, CustomTextCLIP

    arguments = copy.deepcopy(dict(config))
    text = arguments["text_cfg"]
    from_transformers = "hf_model_name" in text
    if from_transformers:
        text["hf_model_pretrained"] = False  # its weights are in the checkpoint
    custom = arguments.pop("custom_text", False) or from_transformers
    kind = CLIP if not custom else CoCa if "multimodal_cfg" in arguments else CustomTextCLIP
    if kind is CoCa:
        arguments["multimodal_cfg"] = {**arguments["multimodal_cfg"], **_SMALLEST_DECODER}
    model = kind(**{**arguments, "vision_cfg": _SMALLEST_VISUAL})
    for name in _OTHERS:
        if hasattr(model, name):
            delattr(model, name)
    return model


def read_text_weights(path: Path) -> dict[str, torch.Tensor]:
    """What a weights file holds besides the parts that text does without; nothing is unpickled.

    Of a safetensors file the rest is not read, and of torch's newer format it is mapped, not read.
    Raises `TowerError` for formats whose towers only open_clip can tell apart, and whatever a
    broken file makes safetensors or torch raise.
    """
    import torch

    if path.suffix in (".npz", ".npy"):
        raise TowerError(f"{path.suffix} weights cannot be taken apart")
    if path.suffix == ".safetensors":
        from safetensors import safe_open

        with safe_open(path, framework="pt", device="cpu") as file:
            return {name: file.get_tensor(key) for name, key in _of_text(list(file.keys())).items()}
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except RuntimeError:  # torch's older format cannot be mapped; a broken file fails once more
        content = torch.load(path, map_location="cpu", weights_only=True)
    weights = content.get("state_dict", content)
    return {name: weights[key] for name, key in _of_text(list(weights)).items()}


def _of_text(keys: Sequence[str]) -> dict[str, str]:
    """The keys to read, by their names in the model."""
    # Checkpoints of distributed training call every weight module.NAME.
    prefix = "module." if keys[0].startswith("module") else ""
    named = {key[len(prefix) :]: key for key in keys}
    if any(name.startswith("image_encoder.") for name in named):
        raise TowerError("weights in MobileCLIP's own format cannot be taken apart")
    return {name: key for name, key in named.items() if name.split(".")[0] not in _OTHERS}


def _as_the_model_wants(weights: dict[str, torch.Tensor], model: Any) -> dict[str, torch.Tensor]:
    """The weights under the names and in the shapes of this model, by open_clip's rules.

    Those of `open_clip.factory.load_checkpoint`, which takes whole files only.
    """
    import torch
    from open_clip.model import convert_to_custom_text_state_dict, resize_text_pos_embed

    if "positional_embedding" in weights and not hasattr(model, "positional_embedding"):
        weights = convert_to_custom_text_state_dict(weights)
    if model.logit_bias is not None and "logit_bias" not in weights:
        weights["logit_bias"] = torch.zeros_like(weights["logit_scale"])
    for name in ("logit_scale", "logit_bias"):
        if name in weights and (wanted := getattr(model, name)) is not None:
            weights[name] = weights[name].reshape(wanted.shape)
    # In checkpoints from before transformers 4.31, which computes them.
    weights.pop("text.transformer.embeddings.position_ids", None)
    resize_text_pos_embed(weights, model)
    return weights


class Tokenizer:
    """open_clip's tokenizer of a model, for several threads, long runs and long texts."""

    def __init__(self, name: str) -> None:
        """The tokenizer of a name as open_clip takes it. Raises what open_clip raises."""
        import open_clip

        self._tokenize: Any = open_clip.get_tokenizer(name)
        self._tokenizing = threading.Lock()
        self._words = getattr(self._tokenize, "cache", None)
        # There from the beginning are the words that stand for something else, such as the end.
        self._special = dict(self._words) if isinstance(self._words, dict) else {}

    def rows(self, texts: Sequence[str], context_length: int | None = None) -> Any:
        """Rows of tokens, one for each text, of the model's length unless told otherwise."""
        # One at a time: the words must not be forgotten while another thread looks one up.
        with self._tokenizing:
            if isinstance(self._words, dict) and len(self._words) > CACHED_WORDS:
                self._words.clear()
                self._words.update(self._special)
            return self._tokenize(list(texts), context_length=context_length)

    def windows(self, text: str) -> list[str]:
        """The text in parts that each fit into the model's context, of about equal length.

        A text that fits is its own only window; a longer one is parted between words, or within
        them where there are none. Words of more than `LONG_WORD` characters become several.
        """
        text = _LONG_WORD.sub(r"\1 ", text)
        if self.fits(text):
            return [text]
        words = " ".join(text.split())
        context = self.context_length
        count = max(2, -(-self.length(words) // (context - self.length(""))))
        for parts in (list(_parts(words, count + more)) for more in range(3)):
            if all(self.fits(part) for part in parts):
                return parts
        # Words of very different lengths: what is still too long is parted again.
        return [window for part in parts for window in self.windows(part)]

    @property
    def context_length(self) -> int:
        """How many tokens the model reads, its own at a text's ends included."""
        return int(self._tokenize.context_length)

    def length(self, text: str) -> int:
        """The number of tokens of a text, the model's own at its ends included."""
        (row,) = self.rows([text], len(text.encode()) + 8)
        return int((row != row[-1]).nonzero().max()) + 1 if (row != row[-1]).any() else 0

    def fits(self, text: str) -> bool:
        """Whether nothing of a text is cut off.

        What does not fit is cut and ended by the tokenizer: then it differs from the uncut row.
        """
        context = self.context_length
        (cut,) = self.rows([text], context)
        (whole,) = self.rows([text], context + len(text.encode()) + 8)
        return bool((whole[:context] == cut).all() and (whole[context:] == whole[-1]).all())

    def unknown_share(self, text: str) -> float | None:
        """The share of a text's tokens that stand for none of its letters, 0 to 1.

        Of a tokenizer of transformers the tokens for what it does not know, and those for single
        bytes; None for open_clip's own, which has neither: whatever is written, it spells.
        """
        tokenizer = getattr(self._tokenize, "tokenizer", None)
        if tokenizer is None:
            return None
        (row,) = self.rows([text], len(text.encode()) + 8)
        tokens = row[: self.length(text)].tolist()
        unknown = [token == tokenizer.unk_token_id for token in tokens]
        own = [token for token in tokens if token not in tokenizer.all_special_ids]
        spelt = sum(map(_is_byte, tokenizer.convert_ids_to_tokens(own)))
        count = len(own) + sum(unknown)
        return (sum(unknown) + spelt) / count if count else 0.0


def _is_byte(token: str) -> bool:
    """Whether sentencepiece spells a byte with a token, for want of a better one."""
    return re.fullmatch("<0x[0-9A-F]{2}>", token) is not None


def _parts(text: str, count: int) -> Iterator[str]:
    """About `count` parts of equal length, cut at a space where one is near."""
    start = 0
    for number in range(1, count + 1):
        end = round(len(text) * number / count)
        if number < count:
            space = text.rfind(" ", start + 1, end + 1)
            end = space if space > start + (end - start) // 2 else end
        if part := text[start:end].strip():
            yield part
        start = end
