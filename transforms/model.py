"""OpenClipModel: whatever open_clip loads, behind two methods; torch and open_clip, no Beam.

torch and open_clip are imported where they are used: a launcher that only checks its command line
does not wait for them.
"""

from __future__ import annotations

import contextlib
import difflib
import functools
import hashlib
import json
import logging
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from transforms import modelstore
from transforms.records import ModelSpec, Preprocess

if TYPE_CHECKING:
    import torch

# torch's threads would spin while they wait for each other, on the cores that decode. It is read
# once, when torch is first imported, which in our processes is below.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

DEMO_MODEL = "demo"
"""The name of the small model in the package: it knows drawings, not photographs."""

TEXT_BATCH = 256

logger = logging.getLogger("beamtag")


class ModelError(Exception):
    """The model cannot be found, loaded, or run where it was asked to run."""


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What is known of a model before its weights are in memory.

    `model_id` is `<name>-<hash8>` over architecture, preprocessing and the weights' content;
    `dim` is the length of its vectors.
    """

    model_id: str
    dim: int
    preprocess: Preprocess


@dataclass(frozen=True, slots=True)
class _Located:
    """A model as files on this machine, and the arguments open_clip takes for it."""

    stem: str
    name: str
    pretrained: str | None
    config: Mapping[str, Any]
    preprocess: Mapping[str, Any]
    weights: Path


@functools.lru_cache(maxsize=1)
def describe_model(spec: ModelSpec) -> ModelInfo:
    """Find a model and say what it is, without loading its weights.

    Raises `ModelError` for a model that is not there or has no weights. A model on a hub or on
    object storage is copied to this machine's cache first.
    """
    located = _locate(spec)
    preprocess = _preprocess(located)
    content = [located.config, asdict(preprocess), modelstore.sha256_file(located.weights)]
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return ModelInfo(f"{located.stem}-{digest[:8]}", int(located.config["embed_dim"]), preprocess)


def _locate(spec: ModelSpec) -> _Located:
    name = spec.name
    if name == DEMO_MODEL:
        name = f"local-dir:{Path(__file__).parent / 'data' / 'demo_model'}"
    if spec.pretrained is not None and (
        name.startswith(("local-dir:", "hf-hub:")) or "://" in name
    ):
        raise ModelError(f"--pretrained goes with an open_clip name; {spec.name!r} has its weights")
    if name.startswith("hf-hub:"):
        return _locate_hub(name)
    if name.startswith("local-dir:"):
        folder = Path(name.removeprefix("local-dir:"))
        return _locate_folder(folder, spec.name.rstrip("/").split("/")[-1].split(":")[-1])
    if "://" in name:
        try:
            folder = modelstore.fetch_folder(name)
        except (OSError, ValueError, ImportError) as error:
            raise ModelError(f"cannot copy the model from {name}: {error}") from error
        return _locate_folder(folder, name.rstrip("/").split("/")[-1])
    return _locate_name(name, spec.pretrained)


def _locate_folder(folder: Path, stem: str) -> _Located:
    import open_clip.factory

    try:
        document = json.loads((folder / "open_clip_config.json").read_text(encoding="utf-8"))
        config = document["model_cfg"]
    except FileNotFoundError:
        raise ModelError(f"no open_clip_config.json in {folder}") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(
            f"{folder / 'open_clip_config.json'} is not a model's: {error!r}"
        ) from error
    weights = open_clip.factory._find_checkpoint_in_dir(folder)
    if weights is None:
        raise ModelError(f"no weights (.safetensors, .bin, .pth) in {folder}")
    return _Located(
        stem,
        f"local-dir:{folder}",
        None,
        config,
        document.get("preprocess_cfg", {}),
        Path(weights),
    )


def _locate_hub(name: str) -> _Located:
    import open_clip.factory

    repository = name.removeprefix("hf-hub:")
    try:
        document = open_clip.factory._get_hf_config(repository)
        weights = open_clip.factory.download_pretrained_from_hf(repository)
    # The hub's client raises its own and its transport's errors; all of them mean the same here.
    except Exception as error:
        raise ModelError(f"cannot get {name}: {_first_line(error)}") from error
    return _Located(
        repository.split("/")[-1],
        name,
        None,
        document["model_cfg"],
        document.get("preprocess_cfg", {}),
        Path(weights),
    )


def _locate_name(name: str, pretrained: str | None) -> _Located:
    import open_clip
    from open_clip.pretrained import download_pretrained

    known = open_clip.list_models()
    architecture = name.replace("/", "-")
    if architecture not in known:
        close = difflib.get_close_matches(architecture, [DEMO_MODEL, *known], n=3)
        hint = f"did you mean {' or '.join(close)}?" if close else "see open_clip.list_models()"
        raise ModelError(f"no model is called {name!r}; {hint}")
    tags = open_clip.list_pretrained_tags_by_model(architecture)
    if pretrained is None:
        raise ModelError(
            f"{name} needs weights: --pretrained=FILE, or one of {', '.join(tags) or 'no tags'}"
        )
    preprocess: Mapping[str, Any] = {}
    if Path(pretrained).is_file():
        weights = Path(pretrained)
    else:
        tag = open_clip.get_pretrained_cfg(architecture, pretrained)
        if not tag:
            raise ModelError(
                f"--pretrained={pretrained} is neither a file nor a tag of {name} "
                f"({', '.join(tags) or 'it has none'})"
            )
        try:
            weights = Path(download_pretrained(tag))
        except Exception as error:  # as in _locate_hub
            raise ModelError(f"cannot get {name}/{pretrained}: {_first_line(error)}") from error
        preprocess = tag
    return _Located(
        architecture,
        name,
        pretrained,
        open_clip.get_model_config(architecture),
        preprocess,
        weights,
    )


def _preprocess(located: _Located) -> Preprocess:
    """open_clip's defaults under the model's own, and the image tower's input size over both."""
    from open_clip.transform import PreprocessCfg, merge_preprocess_dict

    merged = merge_preprocess_dict(PreprocessCfg(), located.preprocess)
    size = located.config["vision_cfg"].get("image_size", 224)
    height, width = (size, size) if isinstance(size, int) else size
    return Preprocess(
        size=(int(height), int(width)),
        mean=_per_channel(merged["mean"]),
        std=_per_channel(merged["std"]),
        # "random" is a choice for training; open_clip itself infers with bicubic then.
        interpolation="bilinear" if merged["interpolation"] == "bilinear" else "bicubic",
        resize_mode=merged["resize_mode"] or "shortest",
        fill_color=int(merged["fill_color"]),
    )


def _per_channel(value: float | Sequence[float]) -> tuple[float, float, float]:
    red, green, blue = (value,) * 3 if isinstance(value, (int, float)) else value
    return float(red), float(green), float(blue)


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def resolve_device(device: str) -> str:
    """`cpu` or `cuda`, as asked or, for `auto`, as found; what `auto` chose is logged.

    Raises `ModelError` where a requested device is absent: nothing falls back silently.
    """
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        raise ModelError("--device=cuda, but this machine has no CUDA device that torch can use")
    if device != "auto":
        return device
    chosen = "cuda" if torch.cuda.is_available() else "cpu"
    what = (
        torch.cuda.get_device_name() if chosen == "cuda" else f"{torch.get_num_threads()} threads"
    )
    logger.info("device: auto chose %s (%s)", chosen, what)
    return chosen


class OpenClipModel:
    """A contrastive model in memory: pixels and sentences to vectors of one space.

    `logit_scale` is exponentiated, as it multiplies similarities; `logit_bias` is 0 where the
    model has none.
    """

    def __init__(self, spec: ModelSpec) -> None:
        """Load weights without unpickling code. Raises `ModelError` where that fails."""
        import open_clip
        import torch

        located = _locate(spec)
        self.info = describe_model(spec)
        self.device = torch.device(resolve_device(spec.device))
        self._precision = spec.precision
        try:
            self._model: Any = open_clip.create_model(
                located.name,
                pretrained=located.pretrained,
                device=self.device,
                require_pretrained=True,
                weights_only=True,
            )
        # Anything at all can be wrong with a checkpoint; each kind of it has its own exception.
        except Exception as error:
            raise ModelError(f"cannot load {spec.name}: {_first_line(error)}") from error
        self._model.eval()
        try:
            self._tokenize: Any = open_clip.get_tokenizer(located.name)
        except ImportError as error:
            raise ModelError(
                f"the tokenizer of {spec.name} needs more packages: pip install 'beamtag[hf]' "
                f"({_first_line(error)})"
            ) from error
        except Exception as error:
            raise ModelError(f"no tokenizer for {spec.name}: {_first_line(error)}") from error
        with torch.inference_mode():
            self.logit_scale = float(self._model.logit_scale.exp())
            bias = getattr(self._model, "logit_bias", None)
            self.logit_bias = 0.0 if bias is None else float(bias)
        preprocess = self.info.preprocess
        shape = (1, 3, 1, 1)
        self._mean = torch.tensor(preprocess.mean, device=self.device).reshape(shape)
        self._std = torch.tensor(preprocess.std, device=self.device).reshape(shape)

    def encode_images(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """L2-normalised `float32[B, D]` vectors of `uint8[B, H, W, 3]` pixels.

        Pixels cross to the device as bytes and are scaled to 0..1 and normalised there.
        """
        import torch

        with torch.inference_mode(), self._autocast():
            # A view in channels-last order: what convolutions like, and no copy.
            images = torch.from_numpy(pixels).to(self.device).permute(0, 3, 1, 2)
            inputs = images.float().div_(255).sub_(self._mean).div_(self._std)
            return _normalized(self._model.encode_image(inputs))

    def encode_texts(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """L2-normalised `float32[N, D]` vectors of sentences, always in fp32: they are few."""
        import torch

        parts = []
        with torch.inference_mode():
            for start in range(0, len(texts), TEXT_BATCH):
                tokens = self._tokenize(list(texts[start : start + TEXT_BATCH])).to(self.device)
                parts.append(_normalized(self._model.encode_text(tokens)))
        return np.concatenate(parts)

    @contextlib.contextmanager
    def _autocast(self) -> Iterator[None]:
        import torch

        if self._precision == "fp32":
            yield
            return
        dtype = torch.bfloat16 if self._precision == "bf16" else torch.float16
        with torch.autocast(self.device.type, dtype=dtype):
            yield


def _normalized(features: torch.Tensor) -> npt.NDArray[np.float32]:
    import torch

    vectors = torch.nn.functional.normalize(features.float(), dim=-1)
    return vectors.cpu().numpy()


_loading = threading.Lock()


def shared_model(spec: ModelSpec) -> OpenClipModel:
    """The one copy of a model that this process holds; loaded by whoever asks first."""
    with _loading:
        return _load_once(spec)


@functools.lru_cache(maxsize=1)
def _load_once(spec: ModelSpec) -> OpenClipModel:
    return OpenClipModel(spec)
