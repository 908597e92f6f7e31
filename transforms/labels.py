"""The label set: what to look for, in words, and the prompts that stand for it.

Pure: nothing here knows a model. `labelfile` reads a set from the file that an archivist writes;
`scoring` turns the vectors of its prompts into tags.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from importlib import resources

from transforms.records import Activation

DEFAULT_TEMPLATES = ("a photo of a {}.",)
DEFAULT_TOP_K = 5

ENSEMBLES = {
    "openai-imagenet": "OPENAI_IMAGENET_TEMPLATES",
    "openai-simple": "SIMPLE_IMAGENET_TEMPLATES",
}
"""Template ensembles by the name that a label file gives, and open_clip's name for each."""


@dataclass(frozen=True, slots=True)
class Label:
    """A word of the label set; its own `prompts`, if it has any, stand in place of templates."""

    name: str
    prompts: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class LabelSet:
    """What to look for and when to say so.

    `threshold` is on the score: a probability for `softmax` (over the set) and `sigmoid`, the
    similarity itself for `cosine`; None keeps the `top_k` best whatever they score.
    """

    name: str
    labels: tuple[Label, ...]
    templates: tuple[str, ...] = DEFAULT_TEMPLATES
    top_k: int = DEFAULT_TOP_K
    threshold: float | None = None
    activation: Activation = "softmax"

    @property
    def label_set_id(self) -> str:
        """`<name>-<hash8>`: changes with anything that could change a tag."""
        content = [
            [[label.name, self.prompts_of(label)] for label in self.labels],
            self.top_k,
            self.threshold,
            self.activation,
        ]
        digest = hashlib.sha256(json.dumps(content, ensure_ascii=False).encode()).hexdigest()
        return f"{self.name}-{digest[:8]}"

    def prompts_of(self, label: Label) -> tuple[str, ...]:
        """The sentences that stand for a label: its own prompts, or every template with its name.

        As in open_clip's `build_zero_shot_classifier`, a template is filled by `str.format`.
        """
        return label.prompts or tuple(template.format(label.name) for template in self.templates)

    def with_overrides(self, top_k: int | None, threshold: float | None) -> LabelSet:
        """The same set, with what the command line says in place of the file."""
        return replace(
            self,
            top_k=self.top_k if top_k is None else top_k,
            threshold=self.threshold if threshold is None else threshold,
        )


def builtin_label_sets() -> list[str]:
    """The names of the label sets in the package."""
    folder = resources.files("transforms") / "data" / "label_sets"
    return sorted(
        entry.name.removesuffix(".yaml")
        for entry in folder.iterdir()
        if entry.name.endswith(".yaml")
    )


def builtin_label_text(name: str) -> str:
    """The text of a label set in the package, one of `builtin_label_sets()`."""
    return (resources.files("transforms") / "data" / "label_sets" / f"{name}.yaml").read_text(
        encoding="utf-8"
    )


def builtin_templates(name: str) -> tuple[str, ...]:
    """A template ensemble of open_clip (importing it, so torch too) by its name in `ENSEMBLES`."""
    from open_clip import zero_shot_metadata

    # open_clip keeps them as functions of the class name; with a hole for a name, they are text.
    return tuple(template("{}") for template in getattr(zero_shot_metadata, ENSEMBLES[name]))
