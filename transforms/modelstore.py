"""Where a model is, and what it is before its weights are loaded.

Names of open_clip, the hub, local folders, and folders on object storage, which are copied once per
machine: locked, checked, then only read. What a folder holds is told without torch and open_clip,
which take seconds to import; open_clip's rules for folders are followed here.
"""

from __future__ import annotations

import contextlib
import difflib
import functools
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import filelock

from transforms.records import ModelSpec, Preprocess
from transforms.storage import locate, version_of

DEMO_MODEL = "demo"
"""The name of the small model in the package: it knows drawings, not photographs."""

_PREFERRED = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
    "open_clip_pytorch_model.pth",
    "model.safetensors",
    "pytorch_model.bin",
    "pytorch_model.pth",
    "model.pth",
)
"""The names of weights files that open_clip takes before all others, the first one first."""

_PREPROCESS = {
    "mean": (0.48145466, 0.4578275, 0.40821073),
    "std": (0.26862954, 0.26130258, 0.27577711),
    "interpolation": "bicubic",
    "resize_mode": "shortest",
    "fill_color": 0,
}
"""What open_clip takes for a model that says nothing else; the numbers are OpenAI's."""

REMEMBERED_BYTES = 32 * 2**20
"""The size of weights files from which on it is faster to remember a digest than to compute it."""

_WANTED = (".json", ".safetensors", ".bin", ".pth", ".pt", ".txt", ".model", ".npz")


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
class LocatedModel:
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
    located = locate_model(spec)
    preprocess = _preprocess(located)
    content = [located.config, asdict(preprocess), weights_digest(located.weights)]
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return ModelInfo(f"{located.stem}-{digest[:8]}", int(located.config["embed_dim"]), preprocess)


@functools.lru_cache(maxsize=1)
def locate_model(spec: ModelSpec) -> LocatedModel:
    """Find a model's files, fetching them where they are not here. Raises `ModelError`."""
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
            folder = fetch_folder(name)
        except (OSError, ValueError, ImportError) as error:
            raise ModelError(f"cannot copy the model from {name}: {error}") from error
        return _locate_folder(folder, name.rstrip("/").split("/")[-1])
    return _locate_name(name, spec.pretrained)


def _locate_folder(folder: Path, stem: str) -> LocatedModel:
    try:
        document = json.loads((folder / "open_clip_config.json").read_text(encoding="utf-8"))
        config = document["model_cfg"]
    except FileNotFoundError:
        raise ModelError(f"no open_clip_config.json in {folder}") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(
            f"{folder / 'open_clip_config.json'} is not a model's: {error!r}"
        ) from error
    weights = find_weights(folder)
    if weights is None:
        raise ModelError(f"no weights (.safetensors, .bin, .pth) in {folder}")
    preprocess = document.get("preprocess_cfg", {})
    return LocatedModel(stem, f"local-dir:{folder}", None, config, preprocess, weights)


def find_weights(folder: Path) -> Path | None:
    """The weights file that open_clip loads from a folder, or None."""
    files = [path for kind in ("safetensors", "bin", "pth") for path in folder.glob(f"*.{kind}")]

    def rank(path: Path) -> tuple[int, bool, Path]:
        known = path.name in _PREFERRED
        place = _PREFERRED.index(path.name) if known else len(_PREFERRED)
        return place, path.suffix != ".safetensors", path

    return min(files, key=rank, default=None)


def _locate_hub(name: str) -> LocatedModel:
    import open_clip.factory

    repository = name.removeprefix("hf-hub:")
    try:
        document = open_clip.factory._get_hf_config(repository)
        weights = open_clip.factory.download_pretrained_from_hf(repository)
    # The hub's client raises its own and its transport's errors; all of them mean the same here.
    except Exception as error:
        raise ModelError(f"cannot get {name}: {first_line(error)}") from error
    return LocatedModel(
        repository.split("/")[-1],
        name,
        None,
        document["model_cfg"],
        document.get("preprocess_cfg", {}),
        Path(weights),
    )


def _locate_name(name: str, pretrained: str | None) -> LocatedModel:
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
            raise ModelError(f"cannot get {name}/{pretrained}: {first_line(error)}") from error
        preprocess = tag
    return LocatedModel(
        architecture,
        name,
        pretrained,
        open_clip.get_model_config(architecture),
        preprocess,
        weights,
    )


def _preprocess(located: LocatedModel) -> Preprocess:
    """open_clip's defaults under the model's own, and the image tower's input size over both."""
    said = {key: value for key, value in (located.preprocess or {}).items() if value is not None}
    merged: dict[str, Any] = {**_PREPROCESS, **said}
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


def first_line(error: BaseException) -> str:
    """An error's message as far as one line takes it."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def cache_folder() -> Path:
    """Where copies are kept: `$BEAMTAG_CACHE`, or `beamtag` in the user's cache folder."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("BEAMTAG_CACHE") or Path(home) / "beamtag")


def fetch_folder(url: str) -> Path:
    """Copy a model's folder to this machine, once for every version of its files.

    Processes that ask at the same time wait for one copy. Every file's length is checked against
    the listing, and a copy appears under its name only when it is whole. Raises OSError where the
    folder cannot be listed or read, or does not arrive whole.
    """
    filesystem, root = locate(url)
    listing = {
        path: details
        for path, details in filesystem.find(root, maxdepth=1, detail=True).items()
        if path.endswith(_WANTED)
    }
    if not listing:
        raise FileNotFoundError(f"no model files under {url}")
    # The listing, not only the address, names the copy: a model replaced in place is a new one.
    identity = sorted(
        (path, details.get("size"), version_of(details)) for path, details in listing.items()
    )
    key = hashlib.sha256(repr((url, identity)).encode()).hexdigest()[:16]
    models = cache_folder() / "models"
    models.mkdir(parents=True, exist_ok=True)
    target = models / key
    with filelock.FileLock(models / f"{key}.lock"):
        if target.is_dir():
            return target
        aside = Path(tempfile.mkdtemp(prefix=f"{key}.", dir=models))
        try:
            for path, details in listing.items():
                copy = aside / path.rsplit("/", 1)[-1]
                filesystem.get_file(path, str(copy))
                if copy.stat().st_size != details.get("size"):
                    raise OSError(
                        f"{path}: {copy.stat().st_size} bytes arrived of {details.get('size')}"
                    )
            aside.rename(target)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
    return target


def weights_digest(path: Path) -> str:
    """The sha256 of a file's content, in hex; of a big file computed once while it stays as it is.

    It is remembered in `cache_folder()`, where that can be. Raises OSError for what is no file.
    """
    if path.stat().st_size < REMEMBERED_BYTES:
        return _sha256(path)
    state = _state_of(path)
    try:
        memory = cache_folder().absolute() / "digests" / state
        known = memory.read_text(encoding="ascii")
    except FileNotFoundError:
        known = ""
    except (OSError, ValueError, RuntimeError):  # no text, no folder, a user without a home
        return _sha256(path)
    if re.fullmatch("[0-9a-f]{64}", known):
        return known
    digest = _sha256(path)
    if _state_of(path) == state:
        with contextlib.suppress(OSError):
            memory.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=memory.parent) as aside:
                whole = Path(aside) / state
                whole.write_text(digest, encoding="ascii")
                whole.replace(memory)
    return digest


def _state_of(path: Path) -> str:
    """A name that is another one for another file, and when this one was written to."""
    status = path.stat()
    times = status.st_mtime_ns, status.st_ctime_ns
    state = os.fsencode(path.absolute()), status.st_size, status.st_ino, times
    return hashlib.sha256(repr(state).encode()).hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
