"""Beam's RunInference and open_clip, imported without what this job does not use of them.

On a night on which little or nothing is new, most of the time is that of imports. What is left out
of them is there for whoever imports it later.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Iterator, Mapping
from typing import Any

_TOWERS = {"open_clip.hf_model": "transformers", "open_clip.timm_model": "timm"}
"""By open_clip's modules, which say None for them where they are missing."""


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
            sys.modules.pop(name, None)


def import_open_clip(config: Mapping[str, Any]) -> None:
    """Import open_clip as a model of this configuration needs it.

    Most models need neither transformers nor timm, in which others have their towers; to import
    these takes as long as torch.
    """
    text, vision = config.get("text_cfg", {}), config.get("vision_cfg", {})
    if not ("hf_model_name" in text or "timm_model_name" in vision):
        with without(*_TOWERS.values()):
            import open_clip  # noqa: F401
        return
    for name, towers in _TOWERS.items():
        module = importlib.import_module(name)
        if getattr(module, towers) is None:
            # Imported for another model; its classes find in their module what they lack now.
            importlib.reload(module)
