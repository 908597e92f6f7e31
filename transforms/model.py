"""OpenClipModel: whatever open_clip loads, behind two methods; torch and open_clip, no Beam.

TextModel is the half of it that words need. torch and open_clip are imported where they are used:
a launcher that only checks its command line does not wait for them.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt

from transforms.imagetower import ImageTower, PrecisionError
from transforms.lightimports import import_open_clip
from transforms.modelstore import ModelError, describe_model, first_line, locate_model
from transforms.records import Decode, ModelSpec
from transforms.texttower import Tokenizer, TowerError, load_text_tower

if TYPE_CHECKING:
    import torch

TEXT_BATCH = 256

Model = TypeVar("Model", bound="TextModel")

logger = logging.getLogger("beamtag")


def check_device(spec: ModelSpec) -> None:
    """Raise `ModelError` where the requested device is absent; torch is imported for cuda only."""
    if spec.device != "cuda":
        return
    import torch

    if not torch.cuda.is_available():
        raise ModelError("--device=cuda, but this machine has no CUDA device that torch can use")


def check_decode(decode: Decode, spec: ModelSpec) -> None:
    """Raise `ModelError` where pictures are to be decoded on a CUDA device, and there is none."""
    if decode != "gpu":
        return
    if spec.device == "cpu":
        raise ModelError("--decode=gpu decodes where the model is, which is not --device=cpu")
    import torch

    if not torch.cuda.is_available():
        raise ModelError("--decode=gpu, but this machine has no CUDA device that torch can use")


def worker_gpus(spec: ModelSpec, workers: int) -> tuple[str, ...]:
    """A CUDA device for each of several processes, as CUDA_VISIBLE_DEVICES names it.

    None for models on the processor. Raises `ModelError` where there are too few.
    """
    if spec.device == "cpu" or workers == 1:
        return ()
    import torch

    if not torch.cuda.is_available():
        return ()
    count = torch.cuda.device_count()
    if workers > count:
        devices = "1 CUDA device" if count == 1 else f"{count} CUDA devices"
        raise ModelError(
            f"--workers={workers}, but this machine has {devices}, and each worker has one of its "
            "own; --device=cpu needs none"
        )
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = visible.split(",") if visible else [str(place) for place in range(count)]
    return tuple(names[:workers])


def resolve_device(spec: ModelSpec) -> str:
    """`cpu` or `cuda`, as asked or, for `auto`, as found; what `auto` chose is logged.

    Raises `ModelError` where a requested device is absent: nothing falls back silently.
    """
    import torch

    check_device(spec)
    if spec.device != "auto":
        return spec.device
    chosen = "cuda" if torch.cuda.is_available() else "cpu"
    what = (
        torch.cuda.get_device_name() if chosen == "cuda" else f"{torch.get_num_threads()} threads"
    )
    logger.info("device: auto chose %s (%s)", chosen, what)
    return chosen


class TextModel:
    """The text half of a contrastive model in memory: sentences to vectors of its space.

    `logit_scale` is exponentiated, as it multiplies similarities; `logit_bias` is 0 where the
    model has none.
    """

    towers = frozenset({"text"})

    def __init__(self, spec: ModelSpec) -> None:
        """Load weights without unpickling code.

        Raises `ModelError` where that fails, and `TowerError` for a model whose text tower cannot
        be loaded on its own.
        """
        import torch

        self.info = describe_model(spec)
        import_open_clip(locate_model(spec).config)
        self.device = torch.device(resolve_device(spec))
        self._model = self._load(spec)
        self._model.eval()
        try:
            self._tokenizer = Tokenizer(locate_model(spec).name)
        except ImportError as error:
            raise ModelError(
                f"the tokenizer of {spec.name} needs more packages: pip install 'beamtag[hf]' "
                f"({first_line(error)})"
            ) from error
        except Exception as error:
            raise ModelError(f"no tokenizer for {spec.name}: {first_line(error)}") from error
        with torch.inference_mode():
            self.logit_scale = float(self._model.logit_scale.exp())
            bias = getattr(self._model, "logit_bias", None)
            self.logit_bias = 0.0 if bias is None else float(bias)
        _loaded.update(self.towers)

    def _load(self, spec: ModelSpec) -> Any:
        return load_text_tower(locate_model(spec)).to(self.device)

    def encode_texts(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """L2-normalised `float32[N, D]` vectors of sentences, always in fp32: they are few."""
        import torch

        parts = []
        with torch.inference_mode():
            for start in range(0, len(texts), TEXT_BATCH):
                tokens = self._tokenizer.rows(texts[start : start + TEXT_BATCH]).to(self.device)
                parts.append(_normalized(self._model.encode_text(tokens)))
        return np.concatenate(parts)

    def text_windows(self, text: str) -> list[str]:
        """The text in parts that each fit into the model's context, of about equal length."""
        return self._tokenizer.windows(text)


class OpenClipModel(TextModel):
    """A contrastive model in memory: pixels and sentences to vectors of one space."""

    towers = frozenset({"image", "text"})

    def __init__(self, spec: ModelSpec) -> None:
        """Load weights without unpickling code. Raises `ModelError` where that fails."""
        super().__init__(spec)
        try:
            self.tower = ImageTower(self._model, spec, self.info.preprocess, self.device)
        except PrecisionError as error:
            raise ModelError(str(error)) from error

    def _load(self, spec: ModelSpec) -> Any:
        import open_clip

        located = locate_model(spec)
        try:
            return open_clip.create_model(
                located.name,
                pretrained=located.pretrained,
                device=self.device,
                require_pretrained=True,
                weights_only=True,
            )
        # Anything at all can be wrong with a checkpoint; each kind of it has its own exception.
        except Exception as error:
            raise ModelError(f"cannot load {spec.name}: {first_line(error)}") from error

    def encode_images(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """L2-normalised `float32[B, D]` vectors of `uint8[B, H, W, 3]` pixels."""
        return self.tower.encode(pixels)


def _normalized(features: torch.Tensor) -> npt.NDArray[np.float32]:
    import torch

    vectors = torch.nn.functional.normalize(features.float(), dim=-1)
    return vectors.cpu().numpy()


_loading = threading.Lock()
_shared: dict[ModelSpec, TextModel] = {}
"""The one copy of a model that this process holds, whole or its text half."""

_loaded: set[str] = set()
_elsewhere: dict[str, Any] = {}
"""The image tower of another process that works for this one."""


def shared_model(spec: ModelSpec) -> OpenClipModel:
    """The one copy of a model that this process holds; loaded by whoever asks first."""
    with _loading:
        return _whole_model(spec)


def shared_text_model(spec: ModelSpec) -> TextModel:
    """The model's text half, for whoever needs no more; the whole model where that is loaded.

    A model that cannot be taken apart is loaded whole, which is logged.
    """
    with _loading:
        if spec in _shared:
            return _shared[spec]
        try:
            return _share(spec, TextModel(spec))
        except TowerError as error:
            logger.warning(
                "%s is loaded whole, for its text tower does not load on its own: %s",
                spec.name,
                error,
            )
        return _whole_model(spec)


def _whole_model(spec: ModelSpec) -> OpenClipModel:
    shared = _shared.get(spec)
    return shared if isinstance(shared, OpenClipModel) else _share(spec, OpenClipModel(spec))


def _share(spec: ModelSpec, model: Model) -> Model:
    # Of the same model, the text half is in the whole one; two models are one too many.
    _shared.clear()
    _shared[spec] = model
    return model


def loaded_towers() -> frozenset[str]:
    """Of `image` and `text`, what this process has loaded since it began, or forgot its models."""
    return frozenset(_loaded)


def tower_in_use() -> dict[str, Any]:
    """What the image tower that is in memory has settled on; nothing where there is none."""
    for model in _shared.values():
        if isinstance(model, OpenClipModel):
            tower = model.tower
            return {
                "device": model.device.type,
                "precision": tower.precision,
                "batch_size": tower.batch_size.value,
                "warm_up_seconds": round(tower.warm_up_seconds, 3),
            }
    return dict(_elsewhere)


def take_in(towers: frozenset[str], tower: dict[str, Any]) -> None:
    """Count what another process that works for this one has loaded, and is using."""
    _loaded.update(towers)
    _elsewhere.update(tower)


def let_go_of_models() -> None:
    """Let go of the shared models: other processes have them from now on."""
    with _loading:
        _shared.clear()


def forget_models() -> None:
    """Let go of the shared models, and of all that is known of models."""
    with _loading:
        _shared.clear()
        _loaded.clear()
        _elsewhere.clear()
        describe_model.cache_clear()
        locate_model.cache_clear()


class LazyModel:
    """The process's one copy of a model, which is not loaded before it is needed."""

    def __init__(self, spec: ModelSpec) -> None:
        self._spec = spec
        self._model: OpenClipModel | None = None

    @property
    def loaded(self) -> bool:
        """Whether something needed it already."""
        return self._model is not None

    def load(self) -> OpenClipModel:
        """The model itself. Raises `ModelError`."""
        if self._model is None:
            self._model = shared_model(self._spec)
        return self._model

    def encode_images(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """As `OpenClipModel.encode_images`."""
        return self.load().encode_images(pixels)

    def encode_texts(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """As `TextModel.encode_texts`."""
        return self.load().encode_texts(texts)

    def text_windows(self, text: str) -> list[str]:
        """As `TextModel.text_windows`."""
        return self.load().text_windows(text)
