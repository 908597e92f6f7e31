"""Beam, its RunInference and open_clip, imported without what this job does not use of them.

On a night on which little or nothing is new, most of the time is that of imports. What is left out
of them is there for whoever imports it later.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Callable, Iterator, Mapping
from importlib.abc import MetaPathFinder
from types import MappingProxyType, ModuleType
from typing import Any

_TOWERS = {"open_clip.hf_model": "transformers", "open_clip.timm_model": "timm"}
"""By open_clip's modules, which say None for them where they are missing."""

_CLIENTS = ("boto3", "google.cloud.dataflow", "google.cloud.storage", "pandas", "pymongo")
"""What Beam has its own stores, service and data frames by; our objects go through fsspec."""

_DEFERRED: Mapping[str, frozenset[str]] = MappingProxyType(
    {
        # torchvision's RoIAlign asks whether it may be compiled; the compiler takes as long as
        # half of torch.
        "torch._dynamo.utils": frozenset({"is_compile_supported"}),
        # Of open_clip's weights by name, and of its uploads.
        "huggingface_hub": frozenset(
            {
                "create_repo",
                "get_hf_file_metadata",
                "hf_hub_download",
                "hf_hub_url",
                "list_repo_files",
                "repo_type_and_id_from_hf_id",
                "upload_folder",
            }
        ),
    }
)
"""Functions by their modules that open_clip's imports bind, and seldom call."""


@contextlib.contextmanager
def without(*names: str) -> Iterator[None]:
    """Meanwhile these modules are not found, unless they are imported already.

    For modules that their importers can do without.
    """
    left_out = [name for name in names if name not in sys.modules]
    for name in left_out:
        sys.modules[name] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        for name in left_out:
            if sys.modules.get(name) is None:
                sys.modules.pop(name, None)


class _Deferred(ModuleType):
    """In place of a module, its functions: the module is imported when one of them is called.

    Asked for anything else, it gives way to the module at once.
    """

    def __init__(self, name: str, functions: frozenset[str]) -> None:
        super().__init__(name)
        self._functions = functions

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self._calling(name) if name in self._functions else getattr(self._import(), name)

    def _calling(self, name: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            return getattr(self._import(), name)(*args, **kwargs)

        return call

    def _import(self) -> ModuleType:
        self.leave()
        return importlib.import_module(self.__name__)

    def leave(self) -> None:
        """Whoever imports the module from here on gets the module."""
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]


@contextlib.contextmanager
def _deferring(functions: Mapping[str, frozenset[str]]) -> Iterator[None]:
    """Meanwhile these functions are bound without importing their modules."""
    deferred = [_Deferred(name, names) for name, names in functions.items()]
    for module in deferred:
        sys.modules.setdefault(module.__name__, module)
    try:
        yield
    finally:
        for module in deferred:
            module.leave()


def import_beam() -> None:
    """Import Beam for a run in this process."""
    with without(*_CLIENTS):
        import apache_beam  # noqa: F401


class _NoPandas(MetaPathFinder):
    def find_spec(self, name: str, *_: object) -> None:
        if name == "pandas":
            raise ModuleNotFoundError("left out", name=name)


def keep_pandas_out() -> None:
    """Let pyarrow make arrays without pandas, which it imports for the first one that is of a list.

    It asks for it only once, unless it is for a conversion to data frames.
    """
    import pyarrow as pa

    # Not by `without`: what is compiled takes the None for the module.
    finder = _NoPandas()
    sys.meta_path.insert(0, finder)
    try:
        pa.array([""])
    finally:
        sys.meta_path.remove(finder)


def import_open_clip(config: Mapping[str, Any]) -> None:
    """Import open_clip as a model of this configuration needs it.

    Most models need neither transformers nor timm, in which others have their towers; to import
    these takes as long as torch.
    """
    text, vision = config.get("text_cfg", {}), config.get("vision_cfg", {})
    if not ("hf_model_name" in text or "timm_model_name" in vision):
        with without(*_TOWERS.values()), _deferring(_DEFERRED):
            import open_clip  # noqa: F401
        return
    for name, towers in _TOWERS.items():
        module = importlib.import_module(name)
        if getattr(module, towers) is None:
            # Imported for another model; its classes find in their module what they lack now.
            importlib.reload(module)
