"""The label sets that the package carries: whole, distinct, and short enough for a CLIP model."""

from __future__ import annotations

import re
from collections import Counter

import numpy as np
import open_clip
import pytest

from transforms.labelfile import parse_label_set, read_label_set
from transforms.labels import LabelSet, builtin_label_sets, builtin_label_text
from transforms.labelvectors import label_vectors
from transforms.model import TextModel
from transforms.records import ModelSpec
from transforms.scoring import scores, select, similarities

OURS = ("content-safety", "document-kinds", "photo-archive")
CLIP_CONTEXT = 77


@pytest.fixture(params=OURS)
def label_set(request) -> LabelSet:
    return read_label_set(request.param)


def test_the_sets_are_there_by_name_and_of_the_size_they_say():
    assert {*OURS, "everyday", "imagenet"} <= set(builtin_label_sets())
    counts = {name: len(read_label_set(name).labels) for name in OURS}
    assert 300 <= counts["photo-archive"] <= 340
    assert 30 <= counts["document-kinds"] <= 40
    assert 30 <= counts["content-safety"] <= 45


def test_every_label_has_a_stable_id_a_way_from_a_root_and_prompts_that_are_its_own(label_set):
    ids = [label.id for label in label_set.labels]
    assert all(re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", id_) for id_ in ids)
    assert len(set(ids)) == len(set(label_set.paths)) == len(ids)
    # The file's order is the tree's: what is above a label stands before it, so no way is a round.
    assert all(above < place for place, above in enumerate(label_set.parents))
    for label, path, above in zip(
        label_set.labels, label_set.paths, label_set.parents, strict=True
    ):
        assert path.split("/")[-1] == label.name
        assert path == (f"{label_set.paths[above]}/{label.name}" if above >= 0 else label.name)
    prompts = Counter(
        prompt for label in label_set.labels for prompt in label_set.prompts_of(label)
    )
    prompts.update(label_set.background)
    assert [prompt for prompt, times in prompts.items() if times > 1] == []


def test_prompts_fit_the_context_of_clip_with_nothing_cut_off(label_set):
    texts = [*label_set.background]
    for label in label_set.labels:
        texts += [*label_set.prompts_of(label), *label.against]
    tokens = open_clip.SimpleTokenizer(context_length=4 * CLIP_CONTEXT)(texts)
    assert int((tokens != 0).sum(dim=1).max()) <= CLIP_CONTEXT


def test_the_photo_archive_is_a_tree_of_four_levels_from_twelve_roots():
    photos = read_label_set("photo-archive")
    depths = Counter(path.count("/") + 1 for path in photos.paths)
    assert depths[1] == 12
    assert max(depths) == 4
    paths = dict(zip((label.id for label in photos.labels), photos.paths, strict=True))
    assert paths["police-car"] == "vehicles/road vehicle/car/police car"
    by_id = {label.id: label for label in photos.labels}
    # Words of two meanings: neither thing's prompts are the bare word.
    for one, other in (("kiwi-bird", "kiwi-fruit"), ("mouse", "computer-mouse")):
        assert by_id[one].against
        assert by_id[other].against
        assert not set(by_id[one].prompts) & {one, other, "kiwi", "mouse"}


def test_content_safety_is_careful_and_says_that_it_is_no_judgement():
    assert "A SCREEN FOR HUMAN REVIEW, NOT A JUDGEMENT" in builtin_label_text("content-safety")
    safety = read_label_set("content-safety")
    assert safety.threshold is not None
    assert len(safety.background) >= 0.75 * len(safety.labels)
    thresholds = {label.id: safety.threshold_of(label) for label in safety.labels}
    assert thresholds["self-harm"] < thresholds["weapon"] < thresholds["alcohol"]


@pytest.mark.parametrize(("name", "own_words"), [("content-safety", 0.8), ("document-kinds", 1.0)])
def test_what_the_background_says_has_no_tag_and_what_labels_say_has_theirs(name, own_words):
    """Sentences in place of pictures, by the demo model: its words reach this far."""
    label_set = read_label_set(name)
    model = TextModel(ModelSpec("demo", device="cpu"))
    labels = label_vectors(label_set, model)

    def tags(vectors: np.ndarray) -> np.ndarray:
        return select(scores(similarities(vectors, labels), labels), labels)

    assert (tags(model.encode_texts(label_set.background)) < 0).all()
    chosen = tags(labels.vectors[: len(label_set.labels)])
    found = [place in row for place, row in enumerate(chosen.tolist())]
    assert np.mean(found) >= own_words


def test_an_archive_adds_words_of_its_own_to_a_set_of_the_package():
    text = """
name: our-archive
includes: [photo-archive]
labels:
  - {id: lock-keeper, name: lock keeper, parent: people-at-work}
"""
    ours = parse_label_set(text, "our-archive.yaml")
    assert len(ours.labels) == len(read_label_set("photo-archive").labels) + 1
    assert "people/people at work/lock keeper" in ours.paths
