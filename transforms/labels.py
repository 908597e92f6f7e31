"""The label set: what to look for, in words and examples, and the prompts that stand for it.

Pure: nothing here knows a model. `labelfile` reads a set from the file that an archivist writes;
`labelvectors` gives it a place in a model's space, `scoring` turns that into tags.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib import resources
from typing import Any

from transforms.records import Activation, Levels

DEFAULT_TEMPLATES = ("a photo of a {}.",)
DEFAULT_TOP_K = 5

ENSEMBLES = {
    "openai-imagenet": "OPENAI_IMAGENET_TEMPLATES",
    "openai-simple": "SIMPLE_IMAGENET_TEMPLATES",
}
"""Template ensembles by the name that a label file gives, and open_clip's name for each."""

IMAGENET = "imagenet"
"""The built-in set whose names are open_clip's own, and not a file of ours."""


@dataclass(frozen=True, slots=True)
class Resource:
    """A file that a label set names: a picture that shows what a label means, or an adapter.

    `sha256` is of its bytes, once they were read; `where` is the line that names it.
    """

    uri: str
    sha256: str = ""
    where: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class Label:
    """A word of the label set, and what stands for it in a model's space.

    Its own `prompts` (whole sentences) and `templates` stand in place of the set's templates;
    `translations` (prompts by language) are added to either. `against` are prompts that speak
    against it: `not` in a file. `parent` is the `id` of the label above it. `threshold` and
    `example_weight` are the set's where they are None. `description` is for people alone.
    """

    name: str
    id: str = ""
    prompts: tuple[str, ...] = ()
    templates: tuple[str, ...] = ()
    translations: tuple[tuple[str, tuple[str, ...]], ...] = ()
    against: tuple[str, ...] = ()
    examples: tuple[Resource, ...] = ()
    example_weight: float | None = None
    threshold: float | None = None
    weight: float = 1.0
    parent: str | None = None
    description: str = ""

    @property
    def key(self) -> str:
        """What tells it from the set's other labels: its id, or its name where it has none."""
        return self.id or self.name


@dataclass(frozen=True, slots=True)
class LabelSet:
    """What to look for and when to say so.

    `threshold` is on the score: a probability for `softmax` (over the set) and `sigmoid`, the
    similarity itself for `cosine`; None keeps the `top_k` best whatever they score. `temperature`
    is 1 / logit scale in place of the model's own. `background` are prompts for none of the labels:
    they take part in the softmax and are never a tag. `adapter` is the URL of what `beamtag adapt`
    has learned for these labels, with the digest of its bytes.
    """

    name: str
    labels: tuple[Label, ...]
    templates: tuple[str, ...] = DEFAULT_TEMPLATES
    top_k: int = DEFAULT_TOP_K
    threshold: float | None = None
    activation: Activation = "softmax"
    temperature: float | None = None
    background: tuple[str, ...] = ()
    levels: Levels = "every"
    example_weight: float = 0.5
    adapter: Resource | None = None
    version: str = ""

    @property
    def label_set_id(self) -> str:
        """`<name>-<hash8>`: changes with anything that could change a tag."""
        return f"{self.name}-{self._digest()[:8]}"

    def _digest(self) -> str:
        told = {
            name: value
            for name, value in ((name, getattr(self, name)) for name in _TOLD)
            if value != _DEFAULTS[name]
        }
        digest = hashlib.sha256(_json(told))
        for label in self.labels:
            # Templates only where they are used, so that a set of sentences is the same set.
            prompts = None if self.is_templated(label) else label.prompts
            content = [prompts, *(getattr(label, name) for name in _TOLD_OF_LABEL)]
            digest.update(_json(content))
        return digest.hexdigest()

    def is_templated(self, label: Label) -> bool:
        """Whether the set's templates stand for a label."""
        return not label.prompts and not label.templates and not self.is_shown(label)

    def is_shown(self, label: Label) -> bool:
        """Whether examples alone stand for a label."""
        return bool(label.examples) and self.example_weight_of(label) == 1

    def prompts_of(self, label: Label) -> tuple[str, ...]:
        """The sentences that stand for a label: its own prompts, or every template with its name.

        As in open_clip's `build_zero_shot_classifier`, a template is filled by `str.format`. None
        where examples alone stand for it.
        """
        if self.is_shown(label):
            return ()
        templates = self.templates if self.is_templated(label) else label.templates
        filled = tuple(template.format(label.name) for template in templates)
        translated = tuple(prompt for _, prompts in label.translations for prompt in prompts)
        return (*label.prompts, *filled, *translated)

    def example_weight_of(self, label: Label) -> float:
        """The examples' share in a label's vector, 0 to 1."""
        return self.example_weight if label.example_weight is None else label.example_weight

    def threshold_of(self, label: Label) -> float | None:
        """The least score of a label's tags."""
        return self.threshold if label.threshold is None else label.threshold

    @property
    def parents(self) -> tuple[int, ...]:
        """Of each label the place of the one above it, -1 where there is none."""
        places = {label.key: place for place, label in enumerate(self.labels)}
        return tuple(-1 if label.parent is None else places[label.parent] for label in self.labels)

    @property
    def paths(self) -> tuple[str, ...]:
        """Of each label the way from the root: `animal/mammal/dog`."""
        return paths_of([label.name for label in self.labels], self.parents)

    @property
    def examples(self) -> tuple[Resource, ...]:
        """The example pictures of all labels."""
        return tuple(example for label in self.labels for example in label.examples)

    def with_overrides(self, top_k: int | None, threshold: float | None) -> LabelSet:
        """The same set, with what the command line says in place of the file.

        A threshold of the command line is every label's.
        """
        labels = self.labels
        if threshold is not None:
            labels = tuple(replace(label, threshold=None) for label in labels)
        return replace(
            self,
            labels=labels,
            top_k=self.top_k if top_k is None else top_k,
            threshold=self.threshold if threshold is None else threshold,
        )


# What can change a tag, apart from the labels; a set's `version` is for people.
_TOLD = (
    "templates",
    "top_k",
    "threshold",
    "activation",
    "temperature",
    "background",
    "levels",
    "example_weight",
    "adapter",
)
_DEFAULTS: dict[str, Any] = {name: LabelSet.__dataclass_fields__[name].default for name in _TOLD}
_TOLD_OF_LABEL = (
    "name",
    "id",
    "templates",
    "translations",
    "against",
    "examples",
    "example_weight",
    "threshold",
    "weight",
    "parent",
)


def _json(told: Any) -> bytes:
    """As JSON; of a file what is in it counts, and not where it is."""
    return json.dumps(
        told, ensure_ascii=False, default=lambda file: file.sha256 or file.uri
    ).encode()


def paths_of(names: Sequence[str], parents: Sequence[int]) -> tuple[str, ...]:
    """The way to each label from its root, names with `/` between them."""
    paths: list[str | None] = [None] * len(names)
    for place in range(len(names)):
        way = []
        above = place
        while above >= 0 and paths[above] is None:
            way.append(above)
            above = parents[above]
        for node in reversed(way):
            start = "" if parents[node] < 0 else f"{paths[parents[node]]}/"
            paths[node] = f"{start}{names[node]}"
    return tuple(path or "" for path in paths)


def plain(label_set: LabelSet) -> dict[str, Any]:
    """A label set for a run's record: what it says, without what it leaves out."""
    told = {name: value for name, value in asdict(label_set).items() if value not in (None, "", ())}
    told["labels"] = [
        {
            name: value
            for name, value in asdict(label).items()
            if value not in (None, "", ()) and (name, value) != ("weight", 1.0)
        }
        for label in label_set.labels
    ]
    return told


def builtin_label_sets() -> list[str]:
    """The names of the label sets in the package."""
    folder = resources.files("transforms") / "data" / "label_sets"
    files = [entry.name for entry in folder.iterdir() if entry.name.endswith(".yaml")]
    return sorted([IMAGENET, *(name.removesuffix(".yaml") for name in files)])


def builtin_label_text(name: str) -> str:
    """The text of a label set in the package, one of `builtin_label_sets()` but ImageNet's."""
    return (resources.files("transforms") / "data" / "label_sets" / f"{name}.yaml").read_text(
        encoding="utf-8"
    )


def builtin_templates(name: str) -> tuple[str, ...]:
    """A template ensemble of open_clip (importing it, so torch too) by its name in `ENSEMBLES`."""
    from open_clip import zero_shot_metadata

    # open_clip keeps them as functions of the class name; with a hole for a name, they are text.
    return tuple(template("{}") for template in getattr(zero_shot_metadata, ENSEMBLES[name]))


def imagenet() -> LabelSet:
    """ImageNet's 1,000 class names and 80 templates as open_clip has them; ids are class numbers.

    Two pairs of classes share a name.
    """
    from open_clip.zero_shot_metadata import IMAGENET_CLASSNAMES

    labels = [Label(name, id=str(number)) for number, name in enumerate(IMAGENET_CLASSNAMES)]
    return LabelSet(IMAGENET, tuple(labels), builtin_templates("openai-imagenet"))
