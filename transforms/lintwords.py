"""A label set's sentences as a model's tokenizer sees them: cut, the same, or unknown."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from transforms.labellines import LabelLines
from transforms.labels import Label, LabelSet
from transforms.labelvectors import PROMPTS_AT_ONCE
from transforms.linting import Finding, Kind

MOST_SPELT = 0.75
"""Tokens a character from which on open_clip's own tokenizer spells a language, and reads no words.

Of words with letters beyond ASCII. Measured on ordinary phrases: English 0.26, other languages in
Latin script 0.31 (Dutch) to 0.59 (Polish), Arabic 0.92, Russian and Thai 1.07, Vietnamese 1.16,
Hindi 1.21, Greek and Hebrew 2.0, Korean 2.1, Japanese 2.3, Chinese 2.75."""

MOST_UNKNOWN = 1 / 3
"""The share of a text's tokens from which on a tokenizer of transformers does not know it."""

_SHOWN = 60


class Tokens(Protocol):
    """What is asked of a model's tokenizer; `texttower.Tokenizer` is one."""

    @property
    def context_length(self) -> int:
        """How many tokens the model reads."""

    def rows(self, texts: Sequence[str], context_length: int | None = None) -> Any:
        """Rows of tokens."""

    def length(self, text: str) -> int:
        """The number of tokens of a text, the model's own at its ends included."""

    def fits(self, text: str) -> bool:
        """Whether nothing of a text is cut off."""

    def unknown_share(self, text: str) -> float | None:
        """The share of a text's tokens that stand for none of its letters, if it has such."""


class _Sentence(NamedTuple):
    """A sentence that the model reads, and the prompt or template that it is written as."""

    text: str
    written: str


class _Block(NamedTuple):
    """Sentences of the label `key`, or of the set where that is empty.

    Repeated ones are told at the lines of `told_at`; None where another block tells the same.
    """

    key: str
    sentences: list[_Sentence]
    told_at: str | None


def check_sentences(label_set: LabelSet, lines: LabelLines, tokens: Tokens) -> Iterator[Finding]:
    """Find sentences that the model does not read to their ends, or cannot tell apart."""
    for blocks in _some(_blocks(label_set)):
        texts = [each.text for block in blocks for each in block.sentences]
        rows = _rows(texts, tokens)
        cut = _cut(texts, rows, tokens)
        start = 0
        for key, sentences, told_at in blocks:
            end = start + len(sentences)
            yield from _cut_sentences(key, sentences, cut[start:end], lines, tokens)
            if told_at is not None:
                yield from _repeated(told_at, sentences, rows[start:end], cut[start:end], lines)
            start = end


def _blocks(label_set: LabelSet) -> Iterator[_Block]:
    are_told = False
    for label in label_set.labels:
        key = label.key
        if label_set.is_templated(label):
            # Of the set's templates every label has the same to tell.
            yield _Block(key, _sentences(label_set, label), None if are_told else "")
            are_told = True
        else:
            yield _Block(key, _sentences(label_set, label), key)
        if label.against:
            yield _Block(key, [_Sentence(prompt, prompt) for prompt in label.against], key)
    yield _Block("", [_Sentence(prompt, prompt) for prompt in label_set.background], "")


def _some(blocks: Iterable[_Block]) -> Iterator[list[_Block]]:
    """Blocks in order, so many at a time that their sentences are about `PROMPTS_AT_ONCE`."""
    part: list[_Block] = []
    size = 0
    for block in blocks:
        part.append(block)
        size += len(block.sentences)
        if size >= PROMPTS_AT_ONCE:
            yield part
            part, size = [], 0
    yield part


def _sentences(label_set: LabelSet, label: Label) -> list[_Sentence]:
    """As `LabelSet.prompts_of`."""
    if label_set.is_shown(label):
        return []
    templates = label_set.templates if label_set.is_templated(label) else label.templates
    translated = [prompt for _, prompts in label.translations for prompt in prompts]
    return [
        *(_Sentence(prompt, prompt) for prompt in label.prompts),
        *(_Sentence(template.format(label.name), template) for template in templates),
        *(_Sentence(prompt, prompt) for prompt in translated),
    ]


def _rows(texts: Sequence[str], tokens: Tokens) -> npt.NDArray[np.int64]:
    """Tokens `[N, C + 1]`: one more than the model reads."""
    size = tokens.context_length + 1
    return np.asarray(tokens.rows(texts, size) if texts else np.empty((0, size)), np.int64)


def _cut(
    texts: Sequence[str], rows: npt.NDArray[np.int64], tokens: Tokens
) -> npt.NDArray[np.bool_]:
    """Which of some texts do not fit, `bool[N]`."""
    padding = int(np.asarray(tokens.rows([""], rows.shape[1]))[0, -1])
    # For some tokenizers the end is padding too: two of it, and nothing was cut.
    near = (rows[:, -2:] != padding).any(axis=1)
    pairs = zip(texts, near.tolist(), strict=True)
    return np.array([is_near and not tokens.fits(text) for text, is_near in pairs], bool)


def _cut_sentences(
    key: str,
    sentences: Sequence[_Sentence],
    cut: npt.NDArray[np.bool_],
    lines: LabelLines,
    tokens: Tokens,
) -> Iterator[Finding]:
    """Each prompt that is cut, and of those made by templates the longest."""
    filled = []
    for each, is_cut in zip(sentences, cut.tolist(), strict=True):
        if is_cut and each.text == each.written:
            yield Finding(lines.word(key, each.written), Kind.CUT_PROMPT, _told_cut(each, tokens))
        elif is_cut:
            filled.append(each)
    if filled:
        longest = max(filled, key=lambda each: tokens.length(each.text))
        more = f" (and {len(filled) - 1} more of its sentences)" if len(filled) > 1 else ""
        yield Finding(lines.label(key), Kind.CUT_PROMPT, _told_cut(longest, tokens) + more)


def _told_cut(sentence: _Sentence, tokens: Tokens) -> str:
    length, context = tokens.length(sentence.text), tokens.context_length
    rest = fallen_off(sentence.text, tokens)
    return (
        f"{_short(sentence.text)} has {length} tokens and the model reads {context}: "
        f"{_short(rest)} falls off, {length - context} tokens"
    )


def fallen_off(text: str, tokens: Tokens) -> str:
    """What of a text the model does not read, from the word on that is not whole any more."""
    words = re.findall(r"\s*\S+", text)
    kept = _most(len(words), lambda count: tokens.fits("".join(words[:count])))
    rest = "".join(words[kept:]).lstrip()
    if kept or len(words) > 1:
        return rest
    # No spaces: a language without them, or one long word.
    return text[_most(len(text), lambda count: tokens.fits(text[:count])) :]


def _most(count: int, fits: Callable[[int], bool]) -> int:
    """The greatest number below `count` that fits, 0 if none does."""
    low, high = 0, count
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def _repeated(
    key: str,
    sentences: Sequence[_Sentence],
    rows: npt.NDArray[np.int64],
    cut: npt.NDArray[np.bool_],
    lines: LabelLines,
) -> Iterator[Finding]:
    seen: dict[bytes, str] = {}
    for each, row, is_cut in zip(sentences, rows, cut.tolist(), strict=True):
        tokens = row.tobytes()
        if not is_cut and tokens in seen:
            yield Finding(
                lines.word(key, each.written),
                Kind.NO_EFFECT,
                f"to this model {_short(each.written)} is the same as {_short(seen[tokens])}: it "
                "says nothing new",
            )
        seen.setdefault(tokens, each.written)


def check_languages(label_set: LabelSet, lines: LabelLines, tokens: Tokens) -> Iterator[Finding]:
    """Find what the model's tokenizer does not know, once for each language of a label.

    A tokenizer of transformers says so itself (`MOST_UNKNOWN`); open_clip's own spells what it does
    not know, so that words fall into many tokens (`MOST_SPELT`).
    """
    for label in label_set.labels:
        if not label_set.is_shown(label):
            own = label.prompts or (label.name,)
            for language, texts in [("", own), *label.translations]:
                if is_unknown(texts, tokens):
                    what = f"{language}, " if language else ""
                    yield Finding(
                        lines.word(label.key, texts[0]),
                        Kind.UNKNOWN_LANGUAGE,
                        f"the model's tokenizer knows no words of {what}{_short(texts[0])}: only "
                        "pieces of letters reach the model",
                    )


def is_unknown(texts: Sequence[str], tokens: Tokens) -> bool:
    """Whether texts of one language are mostly unknown to a tokenizer."""
    shares = [share for text in texts if (share := tokens.unknown_share(text)) is not None]
    if shares:
        return sum(shares) / len(shares) >= MOST_UNKNOWN
    # Digits and capitals of English are tokens each: only words with other letters tell something.
    words = [
        word
        for text in texts
        for word in text.split()
        if any(char.isalpha() and not char.isascii() for char in word)
    ]
    ends = tokens.length("") if words else 0
    spelt = sum(tokens.length(word) - ends for word in words)
    return bool(words) and spelt >= MOST_SPELT * sum(map(len, words))


def _short(text: str) -> str:
    """A text in quotes, its middle left out where it is long."""
    if len(text) > _SHOWN:
        text = f"{text[: _SHOWN // 2].rstrip()} ... {text[-_SHOWN // 2 :].lstrip()}"
    return repr(text)
