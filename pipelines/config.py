"""What a job is told, and where: its command line, and the file of `--config` behind it."""

from __future__ import annotations

import argparse
import difflib
import json
import logging
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from pipelines import checks
from transforms.labelnodes import LabelFileError, List, Map, Node, Page, TooManyMistakesError, Word

COMMAND_LINE, DEFAULT = "command line", "default"
SWITCH = {"true": True, "false": False}
"""How the value of a flag that has none on a command line is written where it must have one."""

# What stands between commas on the command line may be a list in the file.
_COMMAS = (checks.words, checks.extensions)
_JSON_WORD = re.compile(r"true|false|null|-?(0|[1-9][0-9]*)(\.[0-9]+)?")


@dataclass(frozen=True, slots=True)
class Told:
    """An option: its values as text, where they come from, and the flags that say the same."""

    name: str
    values: tuple[str, ...]
    where: str
    flags: tuple[str, ...] = ()


class ConfigError(Exception):
    """A config file cannot be read or has mistakes: one line for each, `file:line: what`."""


class _ConfigPage(Page):
    kind = "config file"
    needs = "options, as name: value"


def given(argv: Sequence[str], switches: Collection[str]) -> dict[str, Told]:
    """The options of a command line by name; `switches` are those that take no value."""
    told: dict[str, Told] = {}
    words = list(argv)
    while words:
        flag, equals, value = words.pop(0).partition("=")
        if not flag.startswith("--"):
            continue
        name = flag[2:]
        if not equals:
            has_value = name not in switches and words and not words[0].startswith("--")
            value = words.pop(0) if has_value else "true"
        values = (*(told[name].values if name in told else ()), value)
        told[name] = Told(name, values, COMMAND_LINE)
    return told


def option_name(action: argparse.Action) -> str | None:
    """What an option is called in a config file; None for a positional and for `--help`."""
    if isinstance(action, argparse._HelpAction):
        return None
    return next((flag[2:] for flag in action.option_strings if flag.startswith("--")), None)


def default_of(action: argparse.Action) -> Told:
    """An option that nobody told, its default as text."""
    default = action.default
    name = option_name(action) or ""
    if default is None or default in ((), [], {}):
        return Told(name, (), DEFAULT)
    if isinstance(default, bool):
        return Told(name, ("true" if default else "false",), DEFAULT)
    text = f"{default:g}" if isinstance(default, float) else str(default)
    return Told(name, (text,), DEFAULT)


def read_config(
    source: str, parser: argparse.ArgumentParser, overruled: Collection[str]
) -> dict[str, Told]:
    """The options of a config file, local or remote, but for those that are `overruled`.

    Each is checked as the parser would check it, and Beam's by Beam's own parser where the job
    takes them. Raises `ConfigError` with every mistake found.
    """
    # Not at the top: only a job that reads a file waits for it.
    from transforms.labelsources import read_text

    page = _ConfigPage(source)
    try:
        text = read_text(source, page.kind)
    except LabelFileError as error:
        raise ConfigError(str(error)) from error
    told: dict[str, Told] = {}
    try:
        root = page.parse(text)
        if isinstance(root, Map):
            told = _Reader(page, parser, overruled).read(root)
        elif root is not None:
            page.mistake(root, "a config file is a map of options to values")
    except TooManyMistakesError:
        pass
    if page.mistakes:
        raise ConfigError("\n".join(page.mistakes))
    return told


def beam_parser() -> argparse.ArgumentParser:
    """Every option that Beam itself knows."""
    # Beam warns of clients of its own that are not installed.
    logging.disable(logging.WARNING)
    try:
        from apache_beam.options.pipeline_options import PipelineOptions, _BeamArgumentParser
    finally:
        logging.disable(logging.NOTSET)

    parser = _BeamArgumentParser(allow_abbrev=False)
    for group in PipelineOptions.__subclasses__():
        group._add_argparse_args(parser)
    return parser


class _Reader:
    """Reads a file's options, noting every mistake instead of the first."""

    def __init__(
        self, page: Page, parser: argparse.ArgumentParser, overruled: Collection[str]
    ) -> None:
        self._page = page
        self._parser = parser
        self._overruled = overruled
        self._own = _options(parser)
        self._takes_beams = "runner" in self._own
        self._own.pop("config", None)

    def read(self, root: Map) -> dict[str, Told]:
        beams: argparse.ArgumentParser | None = None
        told: dict[str, Told] = {}
        for key, node in self._page.pairs(root, "a config file"):
            action, parser = self._own.get(key.text), self._parser
            if action is None and self._takes_beams:
                # Beam is imported for its own options only.
                parser = beams = beams or beam_parser()
                action = _options(beams).get(key.text)
            if action is None:
                self._unknown(key, [*self._own, *(_options(beams) if beams else ())])
                continue
            option = self._option(key.text, node, action, parser)
            same = {flag[2:] for other in parser._actions if other.dest == action.dest
                    for flag in other.option_strings}  # fmt: skip
            if option is not None and not same & set(self._overruled):
                told[key.text] = option
        return told

    def _unknown(self, key: Word, known: Collection[str]) -> None:
        close = difflib.get_close_matches(key.text, known, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"see {self._parser.prog} --help"
        self._page.mistake(key, f"unknown option {key.text[:80]!r}; {hint}")

    def _option(
        self, name: str, node: Node, action: argparse.Action, parser: argparse.ArgumentParser
    ) -> Told | None:
        where = self._page.where(node.line)
        if action.nargs == 0 or isinstance(action.default, bool):
            word = self._page.word(node, name)
            if word is None or word not in SWITCH:
                if word is not None:
                    self._page.mistake(node, f"{name} must be true or false, not {word!r}")
                return None
            flag = f"--{name}" if action.nargs == 0 else f"--{name}=True"
            return Told(name, (word,), where, (flag,) if SWITCH[word] else ())
        texts = self._texts(name, node, action)
        if texts is None:
            return None
        for line, text in texts:
            try:
                parser._get_values(action, [text])
            except argparse.ArgumentError as error:
                self._page.mistake(line, f"{name}: {error.message}")
        values = tuple(text for _, text in texts)
        return Told(name, values, where, tuple(f"--{name}={text}" for text in values))

    def _texts(
        self, name: str, node: Node, action: argparse.Action
    ) -> list[tuple[int, str]] | None:
        """The values with their lines, as the command line would have them."""
        page = self._page
        if isinstance(node, Map):
            if action.type in (checks.storage_options, json.loads):
                return [(node.line, json.dumps(self._plain(node, name)))]
            page.mistake(node, f"{name} is no map of options")
            return None
        if isinstance(node, Word):
            word = page.word(node, name)
            return None if word is None else [(node.line, word)]
        items = page.items(node, name)
        words = [(item.line, page.word(item, name)) for item in items]
        texts = [(line, word) for line, word in words if word is not None]
        if not items or len(texts) < len(items):
            return None
        if action.type in _COMMAS:
            return [(node.line, ",".join(text for _, text in texts))]
        if isinstance(action, argparse._StoreAction):
            page.mistake(node, f"{name} takes one value, not a list")
            return None
        return texts

    def _plain(self, node: Node, what: str) -> Any:
        """What JSON has for it; a word without quotes that JSON knows is its."""
        if isinstance(node, Map):
            pairs = self._page.pairs(node, what)
            return {key.text: self._plain(value, what) for key, value in pairs}
        if isinstance(node, List):
            return [self._plain(item, what) for item in node.items]
        is_json = node.plain and _JSON_WORD.fullmatch(node.text)
        return json.loads(node.text) if is_json else node.text


def _options(parser: argparse.ArgumentParser) -> dict[str, argparse.Action]:
    """A parser's options by all of their names."""
    return {
        flag[2:]: action
        for action in parser._actions
        if option_name(action) is not None
        for flag in action.option_strings
        if flag.startswith("--")
    }
