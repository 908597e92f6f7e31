"""`beamtag evaluate`: how right an output is, as a user asks it."""

from __future__ import annotations

import argparse
import datetime
import tracemalloc
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from checkpoints import make_checkpoint
from conftest import LABELS, Done, encoded, picture

from pipelines import evaluate, tag
from transforms.answers import from_tables, from_vectors
from transforms.decoding import ImageDecoder
from transforms.evaluation import evaluate as compare
from transforms.examples import place_labels
from transforms.labelfile import read_label_set
from transforms.labels import Label, LabelSet
from transforms.labelvectors import label_vectors
from transforms.latest import collect, latest_vectors
from transforms.model import forget_models, loaded_towers
from transforms.modelstore import describe_model
from transforms.records import ModelSpec, ReadLimits
from transforms.schemas import embeddings_schema, predictions_schema
from transforms.scoring import tag as tag_rows
from transforms.truth import Truth

WORDS = ("dog", "cat", "tree", "car", "house")
ANIMALS = """\
name: living
labels: [{name: dog, parent: animal}, {name: cat, parent: animal}, animal, {name: <b>&"tree"}]
"""


@pytest.fixture(scope="module")
def stored(vit: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An output of pictures in folders that labels name; one picture has changed since."""
    root = tmp_path_factory.mktemp("evaluated")
    for number in range(60):
        folder = root / "pictures" / WORDS[number % 5]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number:02d}.jpg").write_bytes(encoded(picture(seed=number)))
    (root / "things.yaml").write_text(LABELS)
    (root / "living.yaml").write_text(ANIMALS)
    arguments = [
        f"--input={root}/pictures",
        f"--labels={root}/things.yaml",
        f"--labels={root}/living.yaml",
        f"--output={root}/out",
        f"--model=local-dir:{vit}",
        "--top_k=9",
        "--quiet",
        "--shard_size=25",
    ]
    assert tag.main([*arguments, "--run_date=2026-01-01"]) == 0
    (root / "pictures" / "dog" / "00.jpg").write_bytes(encoded(picture(seed=1000)))
    # Its new version's files come before those of the old one.
    assert tag.main([*arguments, "--run_date=2025-12-31"]) == 0
    return root


@pytest.fixture
def run(stored: Path, vit: Path, capfd: pytest.CaptureFixture[str]):
    def run(*arguments: str, labels: str = "things.yaml", truth: str = "folders") -> Done:
        named = [f"--output={stored}/out", f"--labels={stored}/{labels}", f"--truth={truth}"]
        capfd.readouterr()
        status = evaluate.main([*named, f"--model=local-dir:{vit}", *arguments])
        printed = capfd.readouterr()
        return Done(status, printed.out, printed.err)

    return run


def vectors_of(stored: Path) -> dict[str, np.ndarray]:
    """The latest vector of each picture, found by looking at all rows."""
    rows = ds.dataset(stored / "out" / "embeddings").to_table().to_pylist()
    rows.sort(key=lambda row: row["embedded_at"])
    return {row["uri"]: np.array(row["embedding"], np.float32) for row in rows}


def labels_of(stored: Path, vit: Path, name: str):
    spec = ModelSpec(f"local-dir:{vit}")
    decode = ImageDecoder(describe_model(spec).preprocess, 10**8)
    return place_labels(read_label_set(f"{stored}/{name}"), spec, decode, ReadLimits())


def test_the_figures_equal_a_plain_loop_over_the_same_vectors(run, stored, vit):
    told = run("--json").told
    vectors, labels = vectors_of(stored), labels_of(stored, vit, "things.yaml")
    assert len(vectors) == 60
    right = of_five = 0
    hits, tagged = dict.fromkeys(WORDS, 0), dict.fromkeys(WORDS, 0)
    for uri, vector in vectors.items():
        truth = Path(uri).parent.name
        order = np.argsort(-(labels.vectors @ vector)).tolist()
        right += WORDS[order[0]] == truth
        of_five += truth in [WORDS[place] for place in order[:5]]
        for place in order[:2]:
            tagged[WORDS[place]] += 1
            hits[WORDS[place]] += WORDS[place] == truth
    assert 0 < right < 60
    assert told["top_1"] == right / 60
    assert told["top_5"] == of_five / 60
    for row in told["labels"]:
        assert (row["items"], row["tagged"], row["hits"]) == (
            12,
            tagged[row["label"]],
            hits[row["label"]],
        )
    assert told["recall"] == pytest.approx(np.mean([count / 12 for count in hits.values()]))
    assert sum(one["items"] for one in told["calibration"]) == 60
    assert sum(pair["items"] for pair in told["confusion"]) == 60 - right
    worst = told["worst"]
    assert len(worst) == min(48, 60 - right)
    assert worst == sorted(worst, key=lambda one: (-one["score"], one["uri"]))
    assert all(one["best"] not in one["truth"] for one in worst)
    # A label that is no score's probability has no calibration.
    (stored / "cosine.yaml").write_text(LABELS + "activation: cosine\n")
    cosine = run("--json", labels="cosine.yaml").told
    assert (cosine["calibration_error"], cosine["calibration"]) == (None, [])
    assert cosine["top_1"] == told["top_1"]


@pytest.mark.parametrize("labels", ["things.yaml", "living.yaml"])
def test_the_tables_say_what_the_vectors_say_where_all_labels_are_tags(run, stored, labels):
    truth = stored / "every.csv"
    lines = [f"{uri},{Path(uri).parent.name}" for uri in vectors_of(stored)]
    truth.write_text("uri,label\n" + "\n".join(lines) + "\n")
    flags = ("--json", "--top_k=9", "--unknown=ignore")
    of_vectors = run(*flags, labels=labels, truth=str(truth)).told
    forget_models()
    named = [f"--output={stored}/out", f"--labels={stored}/{labels}", f"--truth={truth}"]
    of_tables = run("--predictions", *flags, labels=labels, truth=str(truth)).told
    # The only model need not be told.
    assert evaluate.main([*named, *flags, "--predictions", "--quiet"]) == 0
    assert loaded_towers() == frozenset()
    assert of_tables.pop("answers") != of_vectors.pop("answers")
    assert close(of_tables, of_vectors)
    assert of_vectors["left_out"] == (0 if labels == "things.yaml" else 36)


def close(one: Any, other: Any) -> bool:
    """Equal, numbers to 1e-6: products of other shapes are rounded otherwise."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(close(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(close, one, other))
    return one == (pytest.approx(other, abs=1e-6) if isinstance(other, float) else other)


def test_a_hierarchy_makes_what_is_above_true(run, stored, vit):
    told = run("--json", "--unknown=ignore", labels="living.yaml").told
    vectors = {uri: v for uri, v in vectors_of(stored).items() if "/dog/" in uri or "/cat/" in uri}
    labels = labels_of(stored, vit, "living.yaml")
    leaves = [0, 1, 3]
    right = 0
    for uri, vector in vectors.items():
        best = leaves[int(np.argmax((labels.vectors @ vector)[leaves]))]
        right += labels.names[best] == Path(uri).parent.name
    assert told["items"] == told["uris"] == 24
    assert told["top_1"] == right / 24
    rows = {row["path"]: row for row in told["labels"]}
    assert {path: row["items"] for path, row in rows.items()} == {
        "animal/dog": 12,
        "animal/cat": 12,
        "animal": 24,
        '<b>&"tree"': 0,
    }
    assert rows["animal"]["recall_best"] is None
    assert rows["animal"]["precision"] == 1.0
    # What somebody calls an animal is right as a dog and as a cat.
    truth = stored / "animals.csv"
    truth.write_text("uri,label\n" + "".join(f"{uri},animal\n" for uri in vectors))
    coarse = run("--json", labels="living.yaml", truth=str(truth)).told
    best = [int(np.argmax((labels.vectors @ v)[leaves])) for v in vectors.values()]
    assert coarse["top_1"] == np.mean([place < 2 for place in best])


def test_what_is_not_in_the_output_is_counted_and_said(run, stored):
    (stored / "pictures" / "truth.csv").write_text(
        "uri,label\ndog/05.jpg,dog\ndog/05.jpg,cat\nno/such.jpg,car\ncat/01.jpg,goat\n"
    )
    truth = f"{stored}/pictures/truth.csv"
    done = run("--unknown=ignore", truth=truth)
    assert done.status == 0
    said = " ".join(done.out.split())
    assert "1 items compared. 1 of 2 with truth are not in the output: " in said
    assert f"{stored}/pictures/no/such.jpg. 1 rows of truth are left out" in said
    told = run("--unknown=ignore", "--json", truth=truth).told
    assert (told["uris"], told["items"], told["missing"], told["left_out"]) == (2, 1, 1, 1)
    assert told["missing_uris"] == [f"{stored}/pictures/no/such.jpg"]
    assert told["multi_label"]
    quiet = run("--unknown=ignore", "--quiet", truth=truth)
    assert quiet == (0, "", "")
    # Nothing is above that threshold, and an item without a tag is told as such.
    bare = run("--threshold=1", "--json", "--unknown=ignore", truth=truth).told
    assert (bare["untagged"], bare["recall"], bare["f1"]) == (1, 0.0, 0.0)
    assert bare["precision"] is None


class Page(HTMLParser):
    """What is in a page: its text, its elements, and that each one ends."""

    EMPTY = ("meta", "br", "img")

    def __init__(self, content: str) -> None:
        super().__init__()
        self.text = ""
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self._open: list[str] = []
        self.feed(content)
        self.close()
        assert not self._open

    def handle_starttag(self, name: str, attributes: Any) -> None:
        self.elements.append((name, dict(attributes)))
        if name not in self.EMPTY:
            self._open.append(name)

    def handle_startendtag(self, name: str, attributes: Any) -> None:
        self.elements.append((name, dict(attributes)))

    def handle_endtag(self, name: str) -> None:
        assert self._open.pop() == name

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_needs_nothing_else_and_shows_the_worst_mistakes(run, stored, tmp_path):
    truth = tmp_path / "truth.csv"
    wrong = [uri for uri in vectors_of(stored) if "/tree/" in uri or "/cat/" in uri]
    rows = [f'{uri},"<b>&""tree"""' for uri in wrong]
    truth.write_text("uri,label\n" + "\n".join(rows))
    gone = Path(wrong[0])
    kept = gone.read_bytes()
    gone.unlink()
    try:
        done = run(f"--html={tmp_path}/page.html", labels="living.yaml", truth=str(truth))
    finally:
        gone.write_bytes(kept)
    assert (done.status, done.err) == (0, "")
    content = (tmp_path / "page.html").read_text()
    page = Page(content)
    names = [name for name, _ in page.elements]
    assert not {"script", "link", "iframe", "object", "b>"} & set(names)
    assert names.count("svg") == 3
    assert "default-src 'none'" in content
    for name, attributes in page.elements:
        for attribute, value in attributes.items():
            assert not attribute.startswith("on")
            if attribute in ("src", "href"):
                assert (name, value[:24]) == ("img", "data:image/jpeg;base64,/")
    worst = run("--json", labels="living.yaml", truth=str(truth)).told["worst"]
    assert len(worst) > 1
    # The picture that is gone is shown by its name.
    shown = sum(mistake["uri"] != str(gone) for mistake in worst)
    assert names.count("img") == shown
    assert page.text.count("cannot be shown") == len(worst) - shown
    for mistake in worst:
        assert mistake["uri"] in page.text
    assert 'is <b>&"tree"' in page.text
    assert "<b>&" not in content
    assert len(content) < 30_000 + 8_000 * shown


@pytest.fixture(scope="module")
def two_models(stored: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("two")
    other = make_checkpoint(root / "other", seed=1)
    for model in (other, root / "again"):
        make_checkpoint(model, seed=2 if model.name == "again" else 1)
        arguments = [f"--input={stored}/pictures/dog", f"--labels={stored}/things.yaml"]
        flags = [f"--output={root}/out", f"--model=local-dir:{model}", "--quiet"]
        assert tag.main([*arguments, *flags]) == 0
    return root


def test_bad_usage_is_one_line_and_nothing_is_printed(run, stored, two_models, tmp_path):
    near, far = tmp_path / "near.csv", tmp_path / "far.csv"
    near.write_text("uri,label\n/a.jpg,hose\n")
    far.write_text("uri,label\n/a.jpg,house\n")
    both = (f"--output={two_models}/out",)
    cases = [
        (("--model=demo",), {}, "has no embeddings of demo-"),
        ((), {"truth": "/no/truth.csv"}, "no truth file /no/truth.csv"),
        ((), {"truth": str(near)}, "'hose' is not in the label set 'things'; did you mean 'house'"),
        ((), {"truth": str(far)}, f"has truth: {far} has /a.jpg, and the output {stored}"),
        ((), {"labels": "nothing.yaml"}, "no label file"),
        ((f"--labels={stored}/living.yaml",), {}, "one label set at a time"),
        (("--predictions", "--top_k=3"), {}, "has no predictions of things-"),
        (("--html=/no/such/folder/page.html",), {}, "is no file in a folder of this machine"),
        ((f"--output={tmp_path}",), {}, f"{tmp_path} has no embeddings"),
        (("--output=nowhere://x/y",), {}, "--output=nowhere://x/y: "),
        (("--pretrained=x",), {}, "--pretrained goes with"),
        (("--model=local-dir:/no/model",), {}, "no open_clip_config.json in /no/model"),
        (("--top=1",), {}, "unrecognized arguments: --top=1 (see beamtag evaluate --help)"),
    ]
    for arguments, told, message in cases:
        done = run(*arguments, **told)
        first, *others = done.err.splitlines()
        assert (done.status, done.out) == (2, ""), message
        assert first.startswith("beamtag evaluate: error: ")
        assert message in first
        assert not others
    for flags in ((), ("--predictions",)):
        error = several(stored, *both, *flags)
        assert "of several models: tell --model (again-" in error
        assert len(error.splitlines()) == 1
    # Told which, either is read.
    told = (f"--model=local-dir:{two_models}/again", "--predictions", "--json")
    assert run(*both, *told).told["model_id"].startswith("again-")


def several(stored: Path, *arguments: str) -> str:
    """What is said where no model is told."""
    flags = [f"--labels={stored}/things.yaml", "--truth=folders", *arguments]
    # As `main` has it: no model is told.
    options = evaluate.parser().parse_args(flags, argparse.Namespace(model=None))
    with pytest.raises(evaluate.UsageError) as error:
        evaluate._run(options)
    return str(error.value)


class Ones:
    """Label vectors of nothing but their number."""

    logit_scale = 10.0
    logit_bias = 0.0

    def encode_texts(self, texts: list[str]) -> np.ndarray:
        vectors = np.random.default_rng(0).normal(size=(len(texts), 16)).astype(np.float32)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_memory_does_not_grow_with_items_that_have_no_truth(tmp_path):
    label_set = LabelSet("words", tuple(Label(f"word {n}") for n in range(50)), top_k=3)
    labels = label_vectors(label_set, Ones())
    peaks = []
    for files in (3, 30):
        output = tmp_path / str(files)
        truth = Truth(write_output(output, files, label_set, labels))
        answers = []
        for read in (
            lambda output=output, truth=truth: from_vectors(
                latest_vectors(str(output), "m", truth.labels), labels
            ),
            lambda output=output, truth=truth: from_tables(
                str(output), label_set, "m", truth.labels
            ),
        ):
            before = pa.total_allocated_bytes()
            tracemalloc.start()
            answers.append(read())
            _, peak = tracemalloc.get_traced_memory()
            tracemalloc.stop()
            assert pa.total_allocated_bytes() - before < 2**20
            peaks.append(peak)
        of_vectors, of_tables = (compare(one, truth, label_set) for one in answers)
        assert of_vectors.items == of_tables.items == 100
        assert of_vectors.top_1 == of_tables.top_1
    few, few_tables, many, many_tables = peaks
    assert many < few + 2**18
    assert many_tables < few_tables + 2**18


def write_output(output: Path, files: int, label_set: LabelSet, labels) -> dict[str, frozenset]:
    """An archive of 2,000 vectors a file and their tags; the first file's 100 have truth."""
    now = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
    truth = {}
    for number in range(files):
        random = np.random.default_rng(number)
        vectors = random.normal(size=(2000, 16)).astype(np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        schema = embeddings_schema(16)
        same = {
            "version": "1",
            "id": None,
            "modality": "image",
            "content_sha256": "",
            "bytes": 1,
            "run_id": "r",
            "embedded_at": now,
        }
        uris = [f"/archive/{number}/{row}.jpg" for row in range(2000)]
        columns = {
            "uri": pa.array(uris),
            "embedding": pa.FixedSizeListArray.from_arrays(
                pa.array(vectors.ravel()), type=schema.field("embedding").type
            ),
        }
        batch = pa.RecordBatch.from_arrays(
            [
                columns.get(field.name, pa.array([same.get(field.name)] * 2000, field.type))
                for field in schema
            ],
            schema=schema,
        )
        name = f"model=m/dt=2026-01-01/shard-{number:04d}.parquet"
        tags = tag_rows(batch, labels, "r", now)
        assert tags.schema == predictions_schema()
        for table, rows in (
            ("embeddings", batch),
            (f"predictions/label_set={label_set.label_set_id}", tags),
        ):
            path = output / table / name
            path.parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(pa.Table.from_batches([rows]), path)
        if number == 0:
            keys = [label.key for label in label_set.labels]
            truth = {uri: frozenset([keys[row % 50]]) for row, uri in enumerate(uris[:100])}
    found = collect(latest_vectors(str(output), "m", truth))
    assert sorted(found.uris) == sorted(truth)
    return truth
