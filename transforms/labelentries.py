"""One label of a label file, with its lines; and the values that labels and sets both have."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from transforms.labelnodes import List, Map, Node, Page, Word
from transforms.labels import ENSEMBLES, Label, Resource, builtin_templates
from transforms.labelsources import beside
from transforms.records import Activation

LABEL_KEYS = (
    "name", "id", "prompts", "templates", "translations", "not", "examples", "example_weight",
    "threshold", "weight", "parent", "description",
)  # fmt: skip

# RFC 5646: language, script, region and variants.
_LANGUAGE = re.compile(
    r"[A-Za-z]{2,3}(-[A-Za-z]{4})?(-([A-Za-z]{2}|\d{3}))?(-([A-Za-z\d]{5,8}|\d[A-Za-z\d]{3}))*"
)
# A weight's logarithm, and what a temperature divides, stay numbers in 32 bits.
_LEAST, _MOST = 1e-6, 1e6


@dataclass(slots=True)
class Entry:
    """A label as a file has it: `keys` are its nodes, its `parent` is as written."""

    label: Label
    page: Page
    line: int
    keys: Mapping[str, Node] = field(default_factory=dict)

    def mistake(self, key: str, message: str) -> None:
        """Note what is wrong with a key."""
        node = self.keys.get(key)
        self.page.mistake(self.line if node is None else node, message)

    def seen_from(self, page: Page) -> str:
        """Where it stands, for a message about a line of `page`."""
        if page is self.page:
            return f"on line {self.line}"
        return f"in {self.page.where(self.line)}"


class LabelPage(Page):
    """A file's nodes, read as what a label file may say."""

    def entry(self, node: Node, activation: Activation) -> Entry | None:
        """A label, in a set of this activation; None where it is not even the map of one."""
        if not isinstance(node, Map):
            name = self.word(node, "a label")
            return Entry(Label(name), self, node.line) if name else None
        keys = self.keys(node, LABEL_KEYS, "a label")
        if "name" not in keys:
            self.mistake(node, "a label has no 'name'")
        weight = self.positive(keys.get("weight"), "weight", activation)
        label = Label(
            name=self.word(keys.get("name"), "a label's name") or "",
            id=self.word(keys.get("id"), "id") or "",
            prompts=self.words(keys.get("prompts"), "prompts", "a prompt", no_hole),
            templates=self.templates(keys.get("templates")),
            translations=self._translations(keys.get("translations")),
            against=self.words(keys.get("not"), "not", "a prompt of not", no_hole),
            examples=self._examples(keys.get("examples")),
            example_weight=self.number(keys.get("example_weight"), "example_weight", 0, 1),
            threshold=self.threshold(keys.get("threshold"), activation),
            weight=1.0 if weight is None else weight,
            parent=self.word(keys.get("parent"), "parent"),
            description=self.word(keys.get("description"), "description", prose=True) or "",
        )
        if label.example_weight is not None:
            self._check_share(label.example_weight, keys)
        return Entry(label, self, node.line, keys)

    def _check_share(self, weight: float, keys: Mapping[str, Node]) -> None:
        node = keys["example_weight"]
        if "examples" not in keys:
            self.mistake(node, "example_weight says nothing of a label without examples")
        elif weight == 0:
            self.mistake(node, "with example_weight 0 the examples have no effect: drop them")
        for key in ("prompts", "templates", "translations"):
            if weight == 1 and key in keys:
                self.mistake(
                    keys[key], f"{key} have no effect: with example_weight 1 the examples do it all"
                )

    def _examples(self, node: Node | None) -> tuple[Resource, ...]:
        found: dict[Resource, int] = {}
        for item in self.items(node, "examples"):
            example = self.resource(item, "an example")
            if example in found:
                line = found[example]
                self.mistake(item, f"example {example.uri!r} stands on line {line} already")
            elif example is not None:
                found[example] = item.line
        return tuple(found)

    def resource(self, node: Node | None, what: str) -> Resource | None:
        """A file that is named, beside this one unless it says where."""
        uri = self.word(node, what)
        if uri is None or node is None:
            return None
        return Resource(beside(self.source, uri), where=self.where(node.line))

    def _translations(self, node: Node | None) -> tuple[tuple[str, tuple[str, ...]], ...]:
        if node is None:
            return ()
        if not isinstance(node, Map):
            self.mistake(node, "translations must be a map of languages to prompts")
            return ()
        if not node.items:
            self.mistake(node, "translations is an empty map")
        found: dict[str, tuple[str, ...]] = {}
        for key, value in self.pairs(node, "translations"):
            if not _LANGUAGE.fullmatch(key.text):
                close = key.text.replace("_", "-")
                hint = f"; did you mean {close}?" if _LANGUAGE.fullmatch(close) else ""
                self.mistake(
                    key, f"{key.text[:40]!r} is not a language tag such as de or pt-BR{hint}"
                )
                continue
            language = _canonical(key.text)
            if language in found:
                self.mistake(key, f"the language {language} stands twice")
            several = value if isinstance(value, List) else List(value.line, [value])
            found[language] = self.words(several, language, "a translation", no_hole)
        return tuple(found.items())

    def templates(self, node: Node | None) -> tuple[str, ...]:
        """A list of templates, or those of an ensemble."""
        if not isinstance(node, Word):
            return self.words(node, "templates", "template", _no_template)
        # Importing open_clip takes seconds: only where an ensemble is named.
        if node.text in ENSEMBLES:
            return builtin_templates(node.text)
        self.mistake(
            node,
            f"no built-in templates are called {node.text[:80]!r}: there are "
            f"{', '.join(ENSEMBLES)}; or give a list",
        )
        return ()

    def threshold(self, node: Node | None, activation: Activation) -> float | None:
        """A least score, in the range of the activation's."""
        low = -1.0 if activation == "cosine" else 0.0
        return self.number(node, "threshold", low, 1, f" for {activation}")

    def positive(self, node: Node | None, what: str, activation: Activation) -> float | None:
        """A factor of logits."""
        number = self.number(node, what, _LEAST, _MOST)
        if node is not None and number is not None and activation == "cosine":
            self.mistake(node, f"{what} changes logits, and cosine has none")
        return number


def no_hole(prompt: str) -> str | None:
    """What is wrong with a prompt."""
    return "is a whole sentence: {} has a meaning in templates only" if "{}" in prompt else None


def _no_template(template: str) -> str | None:
    if template.count("{}") == 1 and not set("{}") & set(template.replace("{}", "")):
        return None
    return "needs one {}, the place where the label goes"


def _canonical(tag: str) -> str:
    """A language tag as RFC 5646 writes it: pt-BR, zh-Hans."""
    first, *others = tag.lower().split("-")
    forms = {2: str.upper, 4: str.title}
    return "-".join([first, *(forms.get(len(part), str)(part) for part in others)])
