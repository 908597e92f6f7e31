"""What a flag's value may be: text in, a value out, or the reason why not."""

from __future__ import annotations

import argparse
import datetime
import json
import os
import re
from collections.abc import Mapping
from typing import Any

from transforms.accounting import MaxFailures


def nonempty(text: str) -> str:
    """Something."""
    if not text:
        raise argparse.ArgumentTypeError("is empty")
    return text


def url(text: str) -> str:
    """A URL as given, or an absolute local path: a record means the same from anywhere."""
    nonempty(text)
    if "://" not in text:
        return os.path.abspath(os.path.expanduser(text))
    if not text.partition("://")[2].strip("/"):
        raise argparse.ArgumentTypeError(f"{text!r} names nothing after ://")
    return text.rstrip("/")


def output_url(text: str) -> str:
    """A URL or local path that can be written to."""
    if text.lower().startswith(("http://", "https://")):
        raise argparse.ArgumentTypeError("nothing can be written to http:// and https://")
    return url(text)


def glob(text: str) -> str:
    """A glob of a name, or of a path."""
    # Not at the top: --help does not wait for fsspec.
    from transforms.selecting import pattern_of

    try:
        pattern_of(nonempty(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(" ".join(str(error).split())) from None
    return text


def positive(text: str) -> int:
    """A whole number from 1."""
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1")
    return number


def batch_size(text: str) -> int | None:
    """A whole number from 1, or None for `auto`."""
    return None if text == "auto" else positive(text)


def max_failures(text: str) -> MaxFailures:
    """A count, or a share as 0.01 or 1%."""
    if re.fullmatch("[0-9]+", text):
        return MaxFailures(count=int(text))
    try:
        share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a count nor a share like 0.01 or 1%")
    return MaxFailures(share=share)


def date(text: str) -> str:
    """A day, as tables are partitioned by it."""
    try:
        return datetime.date.fromisoformat(text).isoformat()
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a date like 2026-01-31") from None


def colour(text: str) -> tuple[int, int, int]:
    """Red, green and blue, 0 to 255, of six hexadecimal digits."""
    if not re.fullmatch(r"#?[0-9a-fA-F]{6}", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a colour like ffffff")
    red, green, blue = bytes.fromhex(text.removeprefix("#"))
    return red, green, blue


def seconds(text: str) -> float:
    """A time above zero."""
    return _number(text, 0.001, float("inf"), "a number of seconds above 0")


def price(text: str) -> float:
    """An amount of money."""
    return _number(text, 0.0, float("inf"), "a price from 0")


def share(text: str) -> float:
    """A number from 0 to 1."""
    return _number(text, 0.0, 1.0, "a number from 0 to 1")


def _number(text: str, low: float, high: float, what: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = float("nan")
    if not low <= number <= high or number == float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not {what}")
    return number


def words(text: str) -> tuple[str, ...]:
    """Words between commas, each once."""
    found = tuple(dict.fromkeys(word.strip() for word in text.split(",")))
    if not all(found):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list like a,b,c")
    return found


def extensions(text: str) -> tuple[str, ...]:
    """File extensions between commas, with or without their dots."""
    return tuple(f".{word.lower().lstrip('.')}" for word in words(text))


def storage_options(text: str) -> Mapping[str, Mapping[str, Any]]:
    """JSON: for each store, by its URL scheme, the arguments of its client."""
    try:
        options = json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"is not JSON: {error}") from None
    if not isinstance(options, dict) or not all(isinstance(of, dict) for of in options.values()):
        example = '{"s3": {"endpoint_url": "https://..."}}'
        raise argparse.ArgumentTypeError(f"is not a map of stores to arguments, like {example}")
    return options
