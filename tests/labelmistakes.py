"""Mistakes in label files: what stands there, on which line it is told, and what is told of it."""

from __future__ import annotations

TWO = "name: a\nlabels: [a, b]\n"
"""A whole file, to which lines are added from line 3 on."""

FIRST = "name: a\nlabels:\n  - dog\n"
"""The beginning of one, whose list goes on on line 4."""


def label(*keys: str) -> str:
    """A file whose second label, `cat` on line 4, has these keys from line 5 on."""
    return FIRST + "  - name: cat\n" + "".join(f"    {key}\n" for key in keys)


LAUGHS = "a: &a [ha, ha]\n" + "".join(
    f"{letter}: &{letter} [*{before}, *{before}, *{before}, *{before}]\n"
    for before, letter in zip("abcdefghijk", "bcdefghijkl", strict=True)
)

MISTAKES = [
    # The file as a whole.
    ("", 1, "the file is empty"),
    ("# only a comment\n", 1, "the file is empty"),
    ("---\n", 1, "the file is empty"),
    ("- dog\n- cat\n", 1, "is a map with the keys name and labels"),
    ("just words", 1, "is a map with the keys name and labels"),
    ("name: a\n", 1, "has no 'labels'"),
    ("labels: [a, b]\n", 1, "has no 'name'"),
    (TWO + "tempaltes: ['a {}']\n", 3, "did you mean 'templates'?"),
    (TWO + "colour: red\n", 3, "known: name, version, labels"),
    (TWO + "? [x]\n: 1\n", 3, "a key of a label set must be a word"),
    (TWO + "name: b\n", 3, "the key 'name' stands on line 1 already"),
    # YAML.
    ("name: a\nlabels: [a, b\n", 3, "not YAML"),
    ("name: a\n\tlabels: [a, b]\n", 2, "a tab stands where only spaces may"),
    ("name: a\nlabels:\n\t- a\n", 3, "a tab stands where only spaces may"),
    ("name: a\nlabels: [a, b, \x07]\n", 2, "not YAML"),
    ("name: é\nlabels: [ü, b, \x00]\n", 2, "not YAML"),
    ("name: a\nlabels: [a, b, \ud800]\n", 2, "not YAML"),
    ("name: a\nlabels: [a, what: ever: it]\n", 2, "not YAML"),
    ("name: a\nlabels: [a, %b]\n", 2, "not YAML"),
    ("name: a\nlabels: [a, *b]\n", 2, "*b refers to another place"),
    ("name: a\nlabels: [&x a, b]\nbackground: [*x]\n", 3, "*x refers to another place"),
    ("name: a\nlabels: &x\n  - a\n  - *x\n", 4, "*x refers to another place"),
    (LAUGHS, 2, "*a refers to another place"),
    (TWO + "---\n" + TWO, 3, "a second document begins"),
    ("---\n---\n" + TWO, 2, "a second document begins"),
    ("[" * 1_000_000, 1, "nested too deeply"),
    ("- " * 1_000_000, 1, "nested too deeply"),
    (FIRST + "  - " + "[" * 30 + "]" * 30, 4, "nested too deeply"),
    # The set's name.
    ("name: a/b\nlabels: [a, b]\n", 1, "becomes part of a path"),
    (f"name: {'a' * 65}\nlabels: [a, b]\n", 1, "64 at most"),
    ("name: ''\nlabels: [a, b]\n", 1, "name is empty"),
    ("name: [a]\nlabels: [a, b]\n", 1, "name must be text"),
    (TWO + "version: [1]\n", 3, "version must be text"),
    # Labels.
    ("name: a\nlabels: dog\n", 2, "labels must be a list"),
    ("name: a\nlabels:\n", 2, "labels must be a list"),
    ("name: a\nlabels: {dog: cat}\n", 2, "labels must be a list"),
    ("name: a\nlabels: []\n", 2, "labels is an empty list"),
    (FIRST + "  -\n", 4, "a label is empty"),
    (FIRST + "  - null\n", 4, "a label is empty"),
    (FIRST + "  - [cat]\n", 4, "a label must be text"),
    (FIRST + f"  - {'a' * 10_001}\n", 4, "has more than 10,000 characters"),
    (FIRST + '  - "b\\x07"\n', 4, "belong to no word"),
    (FIRST + "  - cat\n  - dog\n", 5, "'dog' stands on line 3 already"),
    ("name: a\nlabels:\n  - é\n  - e\u0301\n", 4, "stands on line 3 already"),
    (FIRST + "  - prompts: [a cat]\n", 4, "a label has no 'name'"),
    (label("promts: [a]"), 5, "did you mean 'prompts'?"),
    (label("colour: red"), 5, "known: name, id, prompts"),
    (label("name: cow"), 5, "the key 'name' stands on line 4 already"),
    ("name: a\nlabels: [dog]\n", 2, "softmax over a single label always scores 1.0"),
    # Names and ids.
    (label("id: ''"), 5, "id is empty"),
    (label("id:"), 5, "id is empty"),
    (label("id: [1]"), 5, "id must be text"),
    (label("id: 7") + "  - {name: cow, id: 7}\n", 6, "id '7' stands on line 4 already"),
    (label("id: dog"), 5, "id 'dog' is the name of the label on line 3, which has no id"),
    (label("id: 7") + "  - cat\n", 6, "'cat' stands on line 4 already; labels of one name need"),
    (FIRST + "  - {name: dog, id: 7}\n", 4, "'dog' stands on line 3 already; labels of one name"),
    # Prompts and templates.
    (
        FIRST + "  - {name: crane, id: 1}\n  - {name: crane, id: 2}\n  - crane\n",
        6,
        "'crane' stands on line 4 already; labels of one name need",
    ),
    (label("prompts: a cat"), 5, "prompts must be a list"),
    (label("prompts: []"), 5, "prompts is an empty list"),
    (label("prompts: ['']"), 5, "a prompt is empty"),
    (label("prompts: [{a: cat}]"), 5, "a prompt must be text"),
    (label("prompts: ['a photo of a {}']"), 5, "{} has a meaning in templates only"),
    (label("prompts:", "  - a cat", "  - a cat"), 7, "'a cat' stands on line 6 already"),
    (label("templates: fancy"), 5, "no built-in templates are called 'fancy'"),
    (label("templates: [a cat]"), 5, "needs one {}"),
    (TWO + "templates: fancy\n", 3, "there are openai-imagenet, openai-simple; or give a list"),
    (TWO + "templates:\n", 3, "no built-in templates are called ''"),
    (TWO + "templates: {a: b}\n", 3, "templates must be a list"),
    (TWO + "templates: []\n", 3, "templates is an empty list"),
    (TWO + "templates: [a photo]\n", 3, "needs one {}"),
    (TWO + "templates: ['{} {}']\n", 3, "needs one {}"),
    (TWO + "templates: ['{} {label}']\n", 3, "needs one {}"),
    (TWO + "templates: ['a {} and {b} c']\n", 3, "needs one {}"),
    (TWO + "templates: ['a { b {} c']\n", 3, "needs one {}"),
    (TWO + "templates: ['a {}', 'a {}']\n", 3, "'a {}' stands on line 3 already"),
    (label("translations: ein Hund"), 5, "translations must be a map of languages"),
    (label("translations: {}"), 5, "translations is an empty map"),
    (label("translations: {german: eine Katze}"), 5, "'german' is not a language tag such as de"),
    (label("translations: {pt_BR: um gato}"), 5, "did you mean pt-BR?"),
    (label("translations:", "  de: Katze", "  DE: Kater"), 7, "the language de stands twice"),
    (label("translations:", "  de: Katze", "  de: Kater"), 7, "'de' stands on line 6 already"),
    (label("translations: {de: []}"), 5, "de is an empty list"),
    (label("translations: {de: [{a: b}]}"), 5, "a translation must be text"),
    (label("translations: {de: ein {}}"), 5, "not YAML"),
    (label("translations: {de: 'ein {}'}"), 5, "{} has a meaning in templates only"),
    (label("translations: {[de]: Katze}"), 5, "a key of translations must be a word"),
    (label("not: a cow"), 5, "not must be a list"),
    (label("not: []"), 5, "not is an empty list"),
    (label("not: [a cow, a cow]"), 5, "'a cow' stands on line 5 already"),
    (label("not: [A photo of a cat.]"), 5, "cannot speak against 'cat'"),
    (label("prompts: [a tom]", "not:", "  - a cow", "  - a tom"), 8, "cannot speak against 'cat'"),
    (label("translations: {de: Kater}", "not: [Kater]"), 6, "cannot speak against 'cat'"),
    # Examples.
    (label("examples: cat.jpg"), 5, "examples must be a list"),
    (label("examples: []"), 5, "examples is an empty list"),
    (label("examples: [[cat.jpg]]"), 5, "an example must be text"),
    (label("examples:", "  - cat.jpg", "  - ./cat.jpg"), 7, "cat.jpg' stands on line 6 already"),
    (label("example_weight: 0.5"), 5, "says nothing of a label without examples"),
    (label("examples: [c.jpg]", "example_weight: 0"), 6, "the examples have no effect"),
    (label("examples: [c.jpg]", "example_weight: 1.01"), 6, "a number from 0 to 1"),
    (label("prompts: [a]", "examples: [c.jpg]", "example_weight: 1"), 5, "prompts have no effect"),
    (TWO + "example_weight: -0.1\n", 3, "example_weight must be a number from 0 to 1"),
    (TWO + "adapter: ''\n", 3, "adapter is empty"),
    (TWO + "adapter: [a, b]\n", 3, "adapter must be text"),
    # Numbers and choices.
    (TWO + "top_k: 0\n", 3, "top_k must be a whole number from 1"),
    (TWO + "top_k: 1.5\n", 3, "top_k must be a whole number from 1"),
    (TWO + "top_k: many\n", 3, "top_k must be a whole number from 1"),
    (TWO + "top_k: '3'\n", 3, "top_k must be a whole number from 1"),
    (TWO + "top_k: 1.0e+400\n", 3, "top_k must be a whole number from 1"),
    (TWO + "activation: relu\n", 3, "one of softmax, sigmoid, cosine"),
    (TWO + "activation: [softmax]\n", 3, "one of softmax, sigmoid, cosine"),
    (TWO + "levels: all\n", 3, "one of every, deepest, leaves"),
    (TWO + "threshold: 1.5\n", 3, "a number from 0 to 1 for softmax"),
    (TWO + "threshold: high\n", 3, "a number from 0 to 1 for softmax"),
    (TWO + "threshold: '0.5'\n", 3, "a number from 0 to 1 for softmax"),
    (TWO + "threshold: .nan\n", 3, "a number from 0 to 1 for softmax"),
    (TWO + "threshold: yes\n", 3, "a number from 0 to 1 for softmax"),
    (TWO + "activation: sigmoid\nthreshold: -0.1\n", 4, "a number from 0 to 1 for sigmoid"),
    (TWO + "activation: cosine\nthreshold: -2\n", 4, "a number from -1 to 1 for cosine"),
    (label("threshold: 2"), 5, "a number from 0 to 1 for softmax"),
    (label("threshold: -1.5") + "activation: cosine\n", 5, "a number from -1 to 1 for cosine"),
    (TWO + "temperature: 0\n", 3, "temperature must be a number from 1e-06"),
    (TWO + "temperature: -1\n", 3, "temperature must be a number from 1e-06"),
    (TWO + "temperature: .inf\n", 3, "temperature must be a number from 1e-06"),
    (TWO + "activation: cosine\ntemperature: 0.1\n", 4, "cosine has none"),
    (label("weight: 0"), 5, "weight must be a number from 1e-06"),
    (label("weight: heavy"), 5, "weight must be a number from 1e-06"),
    (label("weight: 2") + "activation: cosine\n", 5, "cosine has none"),
    (TWO + "background: nothing\n", 3, "background must be a list"),
    (TWO + "background: []\n", 3, "background is an empty list"),
    (TWO + "background: ['a {}']\n", 3, "{} has a meaning in templates only"),
    (TWO + "background: [x, x]\n", 3, "'x' stands on line 3 already"),
    (TWO + "background: [a]\n", 3, "background 'a' is what a label on line 2 looks for"),
    (TWO + "activation: sigmoid\nbackground: [x]\n", 4, "in a softmax, and not in sigmoid"),
    (TWO + "activation: cosine\nbackground: [x]\n", 4, "in a softmax, and not in cosine"),
    # The hierarchy.
    (label("parent: dogg"), 5, "parent 'dogg' is no label of this set; did you mean 'dog'?"),
    (label("parent: vehicle"), 5, "parent 'vehicle' is no label of this set"),
    (label("parent: [dog]"), 5, "parent must be text"),
    (label("parent:"), 5, "parent is empty"),
    (label("parent: cat"), 5, "label 'cat' is its own parent"),
    (label("id: c", "parent: c"), 6, "label 'cat' is its own parent"),
    (
        FIRST + "  - {name: cat, parent: cow}\n  - {name: hen, parent: cat}\n"
        "  - {name: cow, parent: hen}\n  - {name: calf, parent: cow}\n",
        4,
        "the parents go round: cat -> cow -> hen -> cat",
    ),
    (
        "name: a\nlabels:\n"
        + "".join(f"  - {{name: n{row}, parent: n{(row + 1) % 20}}}\n" for row in range(20)),
        3,
        "n0 -> n1 -> n2 -> n3 -> n4 -> n5 -> n6 -> n7 -> n8 -> n9 -> ... -> n0",
    ),
    (
        FIRST + "  - {name: crane, id: 1}\n  - {name: crane, id: 2}\n"
        "  - {name: red crane, parent: crane}\n",
        6,
        "parent 'crane' is several labels (on line 4 and on line 5): say its id",
    ),
    (FIRST + "  - cat/kitten\n  - {name: hen, parent: dog}\n", 4, "has a / in it"),
    (
        "name: a\nlabels:\n  - n0\n"
        + "".join(f"  - {{name: n{row}, parent: n{row - 1}}}\n" for row in range(1, 70)),
        67,
        "label 'n64' has 64 above it",
    ),
    # Other files; `tests/test_labelfile.py` has those that need some.
    ("name: a\nincludes: other.yaml\n", 2, "includes must be a list"),
    ("name: a\nincludes: []\n", 2, "includes is an empty list"),
    ("name: a\nincludes: [[x]]\n", 2, "a file to include must be text"),
    ('name: a\nincludes: ["a\\0b"]\nlabels: [a, b]\n', 2, "belong to no word"),
    ("name: a\nincludes: [gone.yaml]\n", 2, "cannot include gone.yaml: no label file"),
    ("name: a\nincludes: [birds.yaml]\n", 2, "files include each other"),
    ("name: a\nincludes: [everyday]\nlabels:\n  - dog\n", 4, "label 'dog' stands in everyday:"),
    ("name: a\nincludes: [nostore://x/y]\n", 2, "cannot include nostore://x/y: cannot read"),
]
