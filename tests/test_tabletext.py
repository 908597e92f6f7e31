from __future__ import annotations

from transforms.tabletext import carried_text, escaped, printable


def test_values_as_tables_carry_them():
    values = [None, "x", True, False, 5, 1.5, {"a": ["é"]}, [1, None]]
    assert [carried_text(value) for value in values] == [
        None, "x", "true", "false", "5", "1.5", '{"a": ["é"]}', "[1, null]",
    ]  # fmt: skip


def test_text_that_is_no_utf8_is_shown_by_its_escapes():
    assert escaped("a\ud800é") == "a\\ud800é"
    assert printable(b"caf\xe9 \xc3\xa9".decode("utf-8", "surrogateescape")) == "caf\\xe9 é"
