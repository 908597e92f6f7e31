"""Bytes to text: a pure function, whatever encoding the text is in."""

from __future__ import annotations

import codecs
import re

from charset_normalizer import CharsetMatch, from_bytes

from transforms.records import MediaError, Reason

SAMPLE = 64 * 1024
"""Bytes that an encoding is guessed from: the answer is the same as from all, and is quick."""

# Longest first: UTF-32's mark begins with that of UTF-16.
_MARKS = (
    (codecs.BOM_UTF32_LE, "utf_32_le"),
    (codecs.BOM_UTF32_BE, "utf_32_be"),
    (codecs.BOM_UTF8, "utf_8"),
    (codecs.BOM_UTF16_LE, "utf_16_le"),
    (codecs.BOM_UTF16_BE, "utf_16_be"),
    (b"\x84\x31\x95\x33", "gb18030"),
)
_WIDE = ["utf_16_le", "utf_16_be", "utf_32_le", "utf_32_be"]

# Encodings that many files are in, the likeliest first: they win where others read as well.
_COMMON = ("cp1252", "cp1250", "iso8859_15", "iso8859_2")
_LEGACY = {*_COMMON, "cp1251", "cp1253", "cp1254", "cp1255", "cp1256", "cp1257", "koi8_r"}
_ALMOST, _UNTIDY = 0.1, 0.02
"""How much more like a language, and how much tidier, a rare encoding's reading may seem and still
lose to that of a common one."""

_NOT_ASCII = re.compile(rb"[\x80-\xff]")
# All but tab, line feed, vertical tab, form feed, carriage return, end of file and escape.
_CONTROLS = [chr(code) for code in (*range(9), 14, 15, 16, *range(17, 26), 28, 29, 30, 31, 127)]


def decode_text(data: bytes) -> str:
    r"""The text in `data`, without a byte order mark and with lines that end in "\n".

    A byte order mark is believed; else it is UTF-8 where that is possible, and otherwise what
    charset-normalizer makes of it. Raises `MediaError`: `not_text` for what reads as no text in
    any encoding or has NULs in it, `empty` for nothing but white space.
    """
    text = _decode(data).removeprefix("\ufeff")
    if "\0" in text:
        raise MediaError(Reason.NOT_TEXT, f"not text: NULs in {_opening(data)}")
    if 50 * sum(map(text.count, _CONTROLS)) > len(text):
        raise MediaError(Reason.NOT_TEXT, f"not text: control characters in {_opening(data)}")
    text = text.replace("\r\n", "\n").replace("\r", "\n").replace("\x85", "\n")
    if not text.strip():
        raise MediaError(Reason.EMPTY, "no text but white space")
    return text


def _decode(data: bytes) -> str:
    for mark, encoding in _MARKS:
        if data.startswith(mark):
            return _forgiving(data, encoding)
    if b"\0" in data:
        return _forgiving(data, _guess_wide(data))
    # ISO 2022 switches alphabets by escapes: it looks like ASCII.
    if b"\x1b$" not in data:
        try:
            return data.decode()
        except UnicodeDecodeError:
            pass
    return _forgiving(data, _guess(data))


def _forgiving(data: bytes, encoding: str) -> str:
    """Decode although a few characters may be broken: one damaged byte does not undo a book."""
    text = data.decode(encoding, errors="replace")
    if 50 * text.count("\ufffd") > len(text) + 50:
        raise MediaError(Reason.NOT_TEXT, f"not text, nor {encoding}: {_opening(data)}")
    return text


def _guess_wide(data: bytes) -> str:
    """The encoding of text with NULs in it: one of two or four bytes a character, or none."""
    best = from_bytes(data[:SAMPLE], cp_isolation=_WIDE, enable_fallback=False).best()
    if best is None:
        raise MediaError(Reason.NOT_TEXT, f"not text: NULs in {_opening(data)}")
    return best.encoding


def _guess(data: bytes) -> str:
    """The encoding of text that is not UTF-8, by a sample from where it is not ASCII."""
    sample = _sample(data)
    as_utf8 = sample.decode(errors="replace")
    broken = as_utf8.count("\ufffd")
    if len(as_utf8.encode()) - len(as_utf8) > 40 * broken:
        return "utf_8"  # in which a few bytes are damaged; other encodings hardly ever look so
    matches = list(from_bytes(sample, enable_fallback=False))
    if not matches:
        # Perhaps the sample's end cut through a character: only few encodings mind.
        matches = list(from_bytes(data[: SAMPLE // 2], enable_fallback=False))
    if not matches:
        raise MediaError(Reason.NOT_TEXT, f"not text in any known encoding: {_opening(data)}")
    return _likeliest(matches, sample)


def _sample(data: bytes) -> bytes:
    found = _NOT_ASCII.search(data)
    # Before the first such byte a character is a byte; four is the width of the widest.
    start = max(0, found.start() - 1024) // 4 * 4 if found else 0
    sample = data[start : start + SAMPLE]
    if start + SAMPLE < len(data):
        # Line feeds and spaces are never the second half of a character.
        end = max(sample.rfind(b"\n"), sample.rfind(b" "))
        sample = sample[: end + 1] if end > 0 else sample
    return sample


def _likeliest(matches: list[CharsetMatch], sample: bytes) -> str:
    """charset-normalizer's choice, except where a more common encoding reads about as well.

    It has no opinion on how usual an encoding is, and many agree on most characters.
    """
    best = matches[0]
    readings = {name: match for match in matches for name in match.could_be_from_charset}
    # Too short to be known as a language: a few letters with accents among others.
    if best.coherence == 0 and 4 * len(_NOT_ASCII.findall(sample)) <= len(sample):
        rivals = {name: 0.0 for name in _COMMON if name in readings}
    else:
        allowance = 0.0 if best.encoding in _LEGACY else _ALMOST
        rivals = {
            name: readings[name].coherence
            for name in _COMMON
            if name in readings
            and readings[name].chaos <= best.chaos + _UNTIDY
            and readings[name].coherence >= best.coherence - allowance
        }
    chosen = max(rivals, key=lambda name: rivals[name], default=best.encoding)
    # Where others have the sign for any currency, which nobody writes, this one has the euro.
    if chosen in _COMMON and "\xa4" in sample.decode(chosen, "replace"):
        return "iso8859_15"
    return chosen


def _opening(data: bytes) -> str:
    return f"what begins with {data[:24]!r}"
