from __future__ import annotations

import codecs
import os
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transforms.records import MediaError, Reason
from transforms.texts import decode_text

SENTENCES = {
    "japanese": "吾輩は猫である。名前はまだ無い。どこで生れたかとんと見当がつかぬ。何でも薄暗い"
    "じめじめした所でニャーニャー泣いていた事だけは記憶している。",
    "korean": "모든 국민은 인간으로서의 존엄과 가치를 가지며, 행복을 추구할 권리를 가진다.",
    "chinese": "我从乡下跑到京城里，一转眼已经六年了。其间耳闻目睹的所谓国家大事，算起来也很不少。",
    "taiwanese": "我從鄉下跑到京城裡，一轉眼已經六年了。其間耳聞目睹的所謂國家大事，"
    "算起來也很不少。",
    "russian": "Все счастливые семьи похожи друг на друга, каждая несчастливая семья несчастлива "
    "по-своему. Все смешалось в доме Облонских.",
    "french": "Longtemps, je me suis couché de bonne heure. Parfois, à peine ma bougie éteinte, "
    "mes yeux se fermaient si vite que je n’avais pas le temps de me dire : « Je m’endors. »",
    "german": "Als Gregor Samsa eines Morgens aus unruhigen Träumen erwachte, fand er sich in "
    "seinem Bett zu einem ungeheueren Ungeziefer verwandelt. Das kostete ihn 20 €.",
    "spanish": "En un lugar de la Mancha, de cuyo nombre no quiero acordarme, no ha mucho tiempo "
    "que vivía un hidalgo de los de lanza en astillero, adarga antigua y rocín flaco. El niño.",
    "polish": "Litwo! Ojczyzno moja! ty jesteś jak zdrowie; Ile cię trzeba cenić, ten tylko się "
    "dowie, Kto cię stracił. Dziś piękność twą w całej ozdobie widzę i opisuję.",
    "greek": "Όλοι οι άνθρωποι γεννιούνται ελεύθεροι και ίσοι στην αξιοπρέπεια και τα δικαιώματα.",
    "hebrew": "כל בני האדם נולדו בני חורין ושווים בערכם ובזכויותיהם. כולם חוננו בתבונה ובמצפון, "
    "לפיכך חובה עליהם לנהוג איש ברעהו ברוח של אחווה.",
    "arabic": "يولد جميع الناس أحراراً متساوين في الكرامة والحقوق. وقد وهبوا عقلاً وضميراً.",
    "english": "It was the best of times, it was the worst of times, it was the age of wisdom.",
}
ENCODED = [
    ("japanese", "utf_8"),
    ("japanese", "utf_8_sig"),
    ("japanese", "utf_16"),
    ("japanese", "utf_16_le"),
    ("japanese", "utf_16_be"),
    ("japanese", "utf_32"),
    ("japanese", "shift_jis"),
    ("japanese", "euc_jp"),
    ("japanese", "iso2022_jp"),
    ("korean", "euc_kr"),
    ("chinese", "gb18030"),
    ("chinese", "utf_16_be"),
    ("taiwanese", "big5"),
    ("russian", "koi8_r"),
    ("russian", "cp1251"),
    ("russian", "iso8859_5"),
    ("russian", "utf_16_le"),
    ("french", "cp1252"),
    ("german", "cp1252"),
    ("german", "iso8859_15"),
    ("spanish", "latin_1"),
    ("polish", "cp1250"),
    ("polish", "iso8859_2"),
    ("greek", "cp1253"),
    ("hebrew", "cp1255"),
    ("arabic", "cp1256"),
    ("english", "ascii"),
    ("english", "utf_16_le"),
    ("english", "utf_16_be"),
    ("english", "utf_32_be"),
    ("english", "cp037"),
]


def text_or_reason(data: bytes) -> str | Reason:
    try:
        return decode_text(data)
    except MediaError as error:
        return error.reason


def reason_of(data: bytes) -> str | Reason:
    found = text_or_reason(data)
    assert isinstance(found, Reason), found
    return found


@pytest.mark.parametrize(("language", "encoding"), ENCODED)
def test_encodings_are_recognised(language, encoding):
    sentence = SENTENCES[language]
    assert decode_text(sentence.encode(encoding)) == sentence


@pytest.mark.parametrize("mark", ["utf_16_le", "utf_16_be", "utf_32_le", "utf_32_be", "utf_8"])
def test_a_byte_order_mark_is_believed_and_removed(mark):
    assert decode_text("\ufeffa dog".encode(mark)) == "a dog"


@pytest.mark.parametrize("word", ["café", "Müller GmbH", "A photo of a dog at the café"])
def test_a_few_accents_in_a_short_line_are_western(word):
    assert decode_text(word.encode("cp1252")) == word


def test_lines_end_in_line_feeds():
    assert decode_text(b"a dog\r\na cat\ra tree\n") == "a dog\na cat\na tree\n"


@pytest.mark.parametrize("data", [b"", b" \r\n\t", codecs.BOM_UTF8, codecs.BOM_UTF16_LE + b"\n\0"])
def test_nothing_but_white_space_is_empty(data):
    assert reason_of(data) is Reason.EMPTY


@pytest.mark.parametrize(
    "data",
    [
        bytes(1000),
        b"a dog\0 and a cat",
        bytes(range(1, 9)) * 20,
        b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR",
        b"\x7fELF\x02\x01\x01" + bytes(9),
        bytes(range(256)) * 4,
    ],
)
def test_bytes_that_are_no_text(data):
    assert reason_of(data) is Reason.NOT_TEXT


def test_one_damaged_byte_does_not_undo_a_text():
    whole = (SENTENCES["japanese"] * 10).encode()
    damaged = decode_text(whole[:30] + b"\xff" + whole[31:])
    assert damaged.endswith(SENTENCES["japanese"])
    assert decode_text(whole[:-1]).startswith(SENTENCES["japanese"])


def test_a_large_text_is_quick_and_whole():
    line = SENTENCES["french"].encode("cp1252") + b"\r\n"
    count = 20_000_000 // len(line)
    began = time.monotonic()
    text = decode_text(b"plain ascii\n" * 500_000 + line * count)
    # Half a second here; a minute is what charset-normalizer's full search would be allowed.
    assert time.monotonic() - began < 10
    assert text.endswith(SENTENCES["french"] + "\n")
    assert text.count("\n") == 500_000 + count


@settings(max_examples=500, deadline=None)
@given(st.binary(max_size=400))
def test_any_bytes_are_text_or_a_reason(data):
    found = text_or_reason(data)
    if isinstance(found, Reason):
        assert found in (Reason.NOT_TEXT, Reason.EMPTY)
    else:
        assert found.strip()
        assert not {"\0", "\r"} & set(found)


@settings(max_examples=200, deadline=None)
@given(
    st.text(min_size=1, max_size=200),
    st.sampled_from(["utf_8", "utf_16", "utf_16_le", "gb18030", "cp1252", "shift_jis", "koi8_r"]),
    st.binary(max_size=4),
)
def test_any_text_with_damage_is_text_or_a_reason(text, encoding, damage):
    found = text_or_reason(text.encode(encoding, errors="replace") + damage)
    assert not isinstance(found, Reason) or found in (Reason.NOT_TEXT, Reason.EMPTY)


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=300))
def test_utf_8_comes_back_as_it_was(text):
    found = text_or_reason(text.encode(errors="ignore"))
    if not isinstance(found, Reason) and text.isprintable() and not text.startswith("\ufeff"):
        assert found == text


def test_random_bytes_are_not_text():
    assert reason_of(os.urandom(100_000)) is Reason.NOT_TEXT
