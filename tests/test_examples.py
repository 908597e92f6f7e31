"""Labels that are shown by pictures: what can be wrong with those, and what they cost."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from checkpoints import make_checkpoint
from conftest import Job, encoded, picture, write_pictures

from transforms.adapters import Adapter, adapter_bytes
from transforms.decoding import ImageDecoder
from transforms.examples import embed_examples, place_labels, resolve
from transforms.labelfile import LabelFileError, read_label_set
from transforms.model import OpenClipModel, forget_models, loaded_towers
from transforms.modelstore import describe_model
from transforms.records import ModelSpec, ReadLimits

LIMITS = ReadLimits(max_bytes=100_000)


@pytest.fixture
def shown(tmp_path) -> Path:
    """A label file beside the pictures that it names."""
    write_pictures(tmp_path / "pictures", 4)
    path = tmp_path / "shown.yaml"
    path.write_text(
        "name: shown\n"
        "labels:\n"
        "  - name: dog\n"
        "    examples: [pictures/00000.jpg, pictures/00001.jpg]\n"
        "  - name: cat\n"
        "    examples:\n"
        "      - pictures/00002.jpg\n"
        "    example_weight: 1\n"
        "  - tree\n"
        "top_k: 2\n"
    )
    return path


def local(folder: Path) -> ModelSpec:
    return ModelSpec(f"local-dir:{folder}", device="cpu")


def decoder(folder: Path) -> ImageDecoder:
    return ImageDecoder(describe_model(local(folder)).preprocess, max_pixels=1_000_000)


def mistakes(path: Path, model: Path, model_id: str = "m-0") -> list[str]:
    with pytest.raises(LabelFileError) as caught:
        resolve(read_label_set(str(path)), decoder(model), LIMITS, model_id)
    return str(caught.value).splitlines()


def test_every_file_that_cannot_be_used_is_told_with_its_line(shown, vit):
    folder = shown.parent / "pictures"
    whole = (folder / "00003.jpg").read_bytes()
    (folder / "00000.jpg").unlink()
    (folder / "cut.jpg").write_bytes(whole[:400])
    (folder / "words.txt").write_text("a dog on a lawn")
    (folder / "empty.png").write_bytes(b"")
    (folder / "page.jpg").write_bytes(b"<html>not found</html>")
    (folder / "large.bmp").write_bytes(encoded(picture(300, 300), "BMP"))
    (folder / "bad.adapter").write_bytes(b"not an adapter")
    shown.write_text(
        "name: shown\n"
        "adapter: pictures/bad.adapter\n"
        "labels:\n"
        "  - name: dog\n"
        "    examples: [pictures/00000.jpg, pictures/00001.jpg]\n"
        "  - name: cat\n"
        "    examples:\n"
        "      - pictures/cut.jpg\n"
        "      - pictures/words.txt\n"
        "      - pictures/empty.png\n"
        "      - pictures/page.jpg\n"
        "      - pictures/large.bmp\n"
        "      - nowhere://bucket/x.jpg\n"
    )
    told = mistakes(shown, vit)
    expected = [
        (5, "pictures/00000.jpg cannot be used: not_found"),
        (8, "pictures/cut.jpg cannot be used: truncated_image"),
        (9, "pictures/words.txt cannot be used: "),
        (10, "pictures/empty.png cannot be used: empty"),
        (11, "pictures/page.jpg cannot be used: not_an_image"),
        (12, "pictures/large.bmp cannot be used: too_many_bytes"),
        (13, "nowhere://bucket/x.jpg cannot be used: unsupported_uri"),
        (2, "pictures/bad.adapter cannot be used: it is not a file of beamtag adapt"),
    ]
    assert len(told) == len(expected), told
    for line, (number, what) in zip(told, expected, strict=True):
        assert line.startswith(f"{shown}:{number}: "), line
        assert what in line


def test_an_adapter_that_is_gone_or_another_models_is_told_with_its_line(shown, vit):
    shown.write_text("name: a\nlabels: [dog, cat]\nadapter: it.adapter\n")
    (told,) = mistakes(shown, vit)
    assert told.startswith(f"{shown}:3: cannot read adapter ")
    assert "FileNotFoundError" in told
    adapter = Adapter("other-1", ("dog",), np.ones((1, 32), np.float32), np.ones(1, np.float32), {})
    (shown.parent / "it.adapter").write_bytes(adapter_bytes(adapter))
    (told,) = mistakes(shown, vit)
    assert told.endswith("cannot be used: it was made for other-1, and the model is m-0")
    found = resolve(read_label_set(str(shown)), decoder(vit), LIMITS, "other-1")
    assert found.adapter is not None
    assert len(found.adapter.sha256) == 64


def test_a_labels_id_is_that_of_its_examples_bytes(shown, vit):
    first = resolve(read_label_set(str(shown)), decoder(vit), LIMITS, "m-0")
    assert len({example.sha256 for example in first.examples}) == 3
    # The same pictures elsewhere are the same labels.
    elsewhere = shown.parent / "elsewhere"
    elsewhere.mkdir()
    (shown.parent / "pictures").rename(elsewhere / "pictures")
    moved = Path(shown.rename(elsewhere / "shown.yaml"))
    again = resolve(read_label_set(str(moved)), decoder(vit), LIMITS, "m-0")
    assert again.label_set_id == first.label_set_id
    # A byte behind the picture's end changes nothing that one sees, and is another label set.
    example = elsewhere / "pictures" / "00002.jpg"
    example.write_bytes(example.read_bytes() + b"\0")
    changed = resolve(read_label_set(str(moved)), decoder(vit), LIMITS, "m-0")
    assert changed.label_set_id != first.label_set_id
    assert changed.label_set_id.startswith("shown-")


def test_what_changes_between_the_check_and_the_run_is_an_error(shown, vit):
    label_set = resolve(read_label_set(str(shown)), decoder(vit), LIMITS, "m-0")
    model = OpenClipModel(local(vit))
    vectors = embed_examples(label_set, model, decoder(vit), LIMITS)
    example = label_set.labels[1].examples[0]
    expected = model.encode_images(np.stack([decoder(vit)(Path(example.uri).read_bytes()).pixels]))
    assert vectors[example] == pytest.approx(expected[0], abs=1e-6)
    path = shown.parent / "pictures" / "00002.jpg"
    path.write_bytes(encoded(picture(64, 48, 77)))
    with pytest.raises(LabelFileError, match=rf":7: example {path} has changed meanwhile"):
        embed_examples(label_set, model, decoder(vit), LIMITS)
    path.unlink()
    with pytest.raises(LabelFileError, match=rf":7: example {path} cannot be read any more"):
        embed_examples(label_set, model, decoder(vit), LIMITS)


def test_only_examples_need_the_image_tower(shown, vit):
    forget_models()
    label_set = resolve(read_label_set(str(shown)), decoder(vit), LIMITS, "m-0")
    wordy = replace(
        label_set, labels=tuple(replace(label, examples=()) for label in label_set.labels)
    )
    place_labels(wordy, local(vit), decoder(vit), LIMITS)
    assert loaded_towers() == {"text"}
    found = place_labels(label_set, local(vit), decoder(vit), LIMITS)
    assert loaded_towers() == {"image", "text"}
    model = OpenClipModel(local(vit))
    vectors = embed_examples(label_set, model, decoder(vit), LIMITS)
    assert found.vectors[1] == pytest.approx(vectors[label_set.labels[1].examples[0]], abs=1e-6)
    forget_models()


def test_a_job_with_examples_that_cannot_be_read_does_nothing(job: Job, shown):
    folder = shown.parent / "pictures"
    (folder / "00001.jpg").write_bytes(b"<html>")
    (folder / "00002.jpg").unlink()
    done = job(input=folder, labels=shown)
    assert done.status == 2
    lines = done.err.splitlines()
    assert [line.split(": ")[:3] for line in lines] == [
        ["beamtag tag", "error", f"{shown}:4"],
        ["beamtag tag", "error", f"{shown}:7"],
    ]
    assert "not_an_image" in lines[0]
    assert "not_found" in lines[1]
    assert done.out == ""
    assert not Path(done.output).exists()


def test_a_picture_is_tagged_by_its_likeness_to_the_examples(job: Job, shown, labels):
    """Two label sets in one run, one of them with examples, cost one embedding of each item."""
    folder = shown.parent / "pictures"
    done = job(f"--labels={labels}", input=folder, labels=shown)
    assert done.status == 0, done.err
    counts, model = done.record["counts"], done.record["model"]
    assert (counts["embedded"], model["loaded"]) == (4, ["image", "text"])
    vectors = {
        Path(row["uri"]).name: np.array(row["embedding"]) for row in done.table("embeddings")
    }
    of_cat = {
        Path(row["uri"]).name: row["similarity"]
        for row in done.table("predictions")
        if row["label"] == "cat" and row["label_set"].startswith("shown-")
    }
    # Of the label that its example alone stands for, similarity is that of two pictures.
    assert of_cat["00002.jpg"] == pytest.approx(1, abs=1e-5)
    for name, similarity in of_cat.items():
        assert similarity == pytest.approx(vectors[name] @ vectors["00002.jpg"], abs=1e-5)
    sets = {row["label_set"].split("-")[0] for row in done.table("predictions")}
    assert sets == {"shown", "things"}
    (told,) = [told for told in done.record["label_sets"].values() if told["name"] == "shown"]
    assert len(told["labels"][1]["examples"][0]["sha256"]) == 64
    # Nothing is new: no vectors, no model.
    again = job(f"--labels={labels}", input=folder, labels=shown)
    assert again.record["counts"]["reused"] == 4
    assert again.record["model"]["loaded"] == []
    # Another picture behind the same name: the stored vectors are scored once more.
    (folder / "00002.jpg").write_bytes(encoded(picture(64, 48, 99)))
    (folder / "00003.jpg").unlink()
    other = job(input=folder / "00000.jpg", labels=shown)
    assert (other.record["scored"], other.record["counts"]["embedded"]) == (4, 0)
    ids = {row["label_set"] for row in done.table("predictions")}
    assert len([name for name in ids if name.startswith("shown-")]) == 2


def test_an_adapter_in_a_job(job: Job, shown, vit, tmp_path):
    write_pictures(tmp_path / "p", 3)
    spec = describe_model(local(vit))
    path = tmp_path / "adapted.yaml"
    path.write_text("name: adapted\nlabels: [dog, cat]\nadapter: it.adapter\nactivation: cosine\n")
    learned = np.zeros((1, 32), np.float32)
    learned[0, 4] = 2
    adapter = Adapter(spec.model_id, ("cat",), learned, np.zeros(1, np.float32), {})
    (tmp_path / "it.adapter").write_bytes(adapter_bytes(adapter))
    done = job(input=tmp_path / "p", labels=path)
    assert done.status == 0, done.err
    vectors = {row["uri"]: row["embedding"] for row in done.table("embeddings")}
    cats = [row for row in done.table("predictions") if row["label"] == "cat"]
    assert len(cats) == 3
    for row in cats:
        assert row["similarity"] == pytest.approx(vectors[row["uri"]][4], abs=1e-6)
    (tmp_path / "it.adapter").write_bytes(b"x")
    refused = job(input=tmp_path / "p", labels=path)
    assert refused.status == 2
    assert f"{path}:3: adapter" in refused.err
    other = make_checkpoint(tmp_path / "other", seed=1)
    (tmp_path / "it.adapter").write_bytes(adapter_bytes(adapter))
    refused = job(input=tmp_path / "p", labels=path, model=f"local-dir:{other}")
    assert refused.status == 2
    assert f"it was made for {spec.model_id}, and the model is other-" in refused.err
