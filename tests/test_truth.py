"""What items are known to show, as people write it down."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from transforms.labels import Label, LabelSet
from transforms.truth import TruthError, read_truth

SET = LabelSet(
    "things",
    (
        Label("dog"),
        Label("crane", id="crane-bird"),
        Label("crane", id="crane-machine"),
        Label("café", id="c1"),
        Label("c1", id="x"),
    ),
)


def written(folder: Path, text: str | bytes, name: str = "truth.csv") -> str:
    path = folder / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return str(path)


def test_a_table_tells_labels_by_id_or_name_in_any_number_of_rows(tmp_path):
    file = written(
        tmp_path,
        "\ufeffwho,label,uri\r\n"
        "me,dog,a.jpg\r\n"
        "\r\n"
        "me, crane-bird ,a.jpg\r\n"
        'me,dog,"sub/b, c.jpg"\r\n'
        f"me,{unicodedata.normalize('NFD', 'café')},/abs/d.jpg\r\n"
        # An id before a name, whichever label comes first.
        "you,c1,gs://bucket/e.jpg\r\n"
        "you,dog,../f.jpg\r\n",
    )
    truth = read_truth(file, SET)
    assert truth.labels == {
        f"{tmp_path}/a.jpg": {"dog", "crane-bird"},
        f"{tmp_path}/sub/b, c.jpg": {"dog"},
        "/abs/d.jpg": {"c1"},
        "gs://bucket/e.jpg": {"c1"},
        f"{tmp_path.parent}/f.jpg": {"dog"},
    }
    assert truth.is_multi
    assert truth.left_out == 0
    stated = truth.stated(["/abs/d.jpg", f"{tmp_path}/a.jpg", "/nobody/knows.jpg"], SET)
    np.testing.assert_array_equal(stated, [[0, 0, 0, 1, 0], [1, 1, 0, 0, 0], [0, 0, 0, 0, 0]])


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.string_view(), "dictionary"])
def test_parquet_says_the_same_as_csv(tmp_path, kind):
    uris, labels = ["a.jpg", "b.jpg", "a.jpg"], ["dog", "c1", "crane-bird"]
    columns = [pa.array(values) for values in (uris, labels)]
    if kind == "dictionary":
        columns = [column.dictionary_encode() for column in columns]
    else:
        columns = [column.cast(kind) for column in columns]
    pq.write_table(
        pa.table({"uri": columns[0], "n": pa.array([1, 2, 3]), "label": columns[1]}),
        tmp_path / "truth.bin",
    )
    rows = "".join(f"{uri},{label}\n" for uri, label in zip(uris, labels, strict=True))
    assert read_truth(f"{tmp_path}/truth.bin", SET) == read_truth(
        written(tmp_path, "uri,label\n" + rows), SET
    )


def test_numbers_are_labels_too(tmp_path):
    numbered = LabelSet("imagenet", (Label("tench", id="0"), Label("goldfish", id="1")))
    table = pa.table({"uri": ["/a", "/b"], "label": pa.array([1, 0])})
    pq.write_table(table, tmp_path / "truth.parquet")
    truth = read_truth(f"{tmp_path}/truth.parquet", numbered)
    assert truth.labels == {"/a": {"1"}, "/b": {"0"}}
    assert not truth.is_multi


def test_folders_tell_the_labels_of_what_is_in_them():
    uris = ["/a/dog/1.jpg", "gs://b/x/dog/2.jpg", "/a/dog/1.jpg", "/a/cat/3.jpg", "/4.jpg", "5.jpg"]
    with pytest.raises(TruthError) as error:
        read_truth("folders", SET, uris)
    assert str(error.value).splitlines() == [
        "/a/cat/3.jpg: label 'cat' is not in the label set 'things'",
        "/4.jpg: there is no label (and in 1 more)",
    ]
    truth = read_truth("folders", SET, uris, "ignore")
    assert truth.labels == {"/a/dog/1.jpg": {"dog"}, "gs://b/x/dog/2.jpg": {"dog"}}
    assert truth.left_out == 3


MISTAKES = {
    "no label column": ("uri,lable\n/a,dog\n", "no column 'label' (it has: uri, lable)"),
    "no uri column": ("path,label\n/a,dog\n", "no column 'uri' (it has: path, label)"),
    "two columns": ("uri,label,label\n/a,dog,dog\n", "two columns 'label'"),
    "nothing": ("", "no column 'uri' (it has: none)"),
    "no rows": ("uri,label\n\n", "has no rows"),
    "no uri": ("uri,label\n,dog\n", "truth.csv:2: there is no uri"),
    "no label": ("uri,label\n/a,\n", "truth.csv:2: there is no label"),
    "a near miss": ("uri,label\n/a,dgo\n/b,dgo\n", "'dgo' is not in the label set 'things'; did "),
    "two meanings": ("uri,label\n/a,crane\n", "'crane' is several labels of 'things': say its id"),
    "a field too many": ("uri,label\n/a,dog,1\n", "truth.csv:2: 3 fields, where the header has 2"),
    "an open quote": ('uri,label\n/a,"dog\n/b,dog\n', "truth.csv:3: unexpected end of data"),
    "no UTF-8": (b"uri,label\n/a,dog\n/b,caf\xe9\n", "truth.csv:3: not UTF-8 text"),
    "broken Parquet": (b"PAR1 and no more", "as Parquet: "),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_told_with_its_place(tmp_path, name):
    content, told = MISTAKES[name]
    with pytest.raises(TruthError) as error:
        read_truth(written(tmp_path, content), SET)
    assert told in str(error.value).splitlines()[0]
    assert str(tmp_path) in str(error.value)


def test_all_unknown_labels_are_told_at_once_but_not_without_end(tmp_path):
    rows = "".join(f"/{number}.jpg,word{number % 30}\n" for number in range(60))
    file = written(tmp_path, f"uri,label\n/dog.jpg,dog\n{rows}")
    with pytest.raises(TruthError) as error:
        read_truth(file, SET)
    lines = str(error.value).splitlines()
    assert len(lines) == 21
    assert lines[0] == (f"{file}:3: label 'word0' is not in the label set 'things' (and in 1 more)")
    assert lines[20] == f"{file}: 10 more labels are unknown"
    truth = read_truth(file, SET, unknown="ignore")
    assert (truth.labels, truth.left_out) == ({"/dog.jpg": {"dog"}}, 60)


def test_a_truth_without_a_label_of_the_set_and_a_missing_one_are_told(tmp_path):
    file = written(tmp_path, "uri,label\n/a,word\n")
    with pytest.raises(TruthError, match=r"^no row of .*truth.csv has a label of 'things'$"):
        read_truth(file, SET, unknown="ignore")
    with pytest.raises(TruthError, match=r"^no truth file .*nothing.csv$"):
        read_truth(f"{tmp_path}/nothing.csv", SET)
    with pytest.raises(TruthError, match=r"^cannot read .*Directory"):
        read_truth(str(tmp_path), SET)
    with pytest.raises(TruthError, match=r"^the output has no items$"):
        read_truth("folders", SET, [])
