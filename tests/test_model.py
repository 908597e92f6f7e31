from __future__ import annotations

import json
import os
import pickle
import threading
from dataclasses import replace
from pathlib import Path

import fsspec
import numpy as np
import open_clip
import pytest
import torch
from checkpoints import CONFIGS, make_checkpoint
from conftest import picture
from fakes import CountingStore

from transforms import modelstore
from transforms.fitting import fit
from transforms.labels import Label, LabelSet
from transforms.labelvectors import label_vectors
from transforms.model import OpenClipModel
from transforms.modelstore import ModelError, describe_model
from transforms.records import ModelSpec, Preprocess


def local(folder: Path, **changes) -> ModelSpec:
    return ModelSpec(f"local-dir:{folder}", device="cpu", **changes)


@pytest.fixture(scope="module", params=sorted(CONFIGS))
def checkpoint(request, tmp_path_factory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("m") / request.param, request.param)


def test_vectors_and_preprocess_are_open_clips(checkpoint):
    model = OpenClipModel(local(checkpoint))
    theirs, _, transform = open_clip.create_model_and_transforms(f"local-dir:{checkpoint}")
    theirs.eval()
    images = [picture(90, 70, seed) for seed in range(5)]
    with torch.no_grad():
        expected = theirs.encode_image(
            torch.stack([transform(image) for image in images]), normalize=True
        ).numpy()
    pixels = np.stack([np.asarray(fit(image, model.info.preprocess)) for image in images])
    vectors = model.encode_images(pixels)
    assert vectors.dtype == np.float32
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(np.ones(5), abs=1e-6)
    assert (vectors * expected).sum(axis=1).min() > 0.99999
    assert vectors.shape[1] == model.info.dim

    config = theirs.visual.preprocess_cfg
    assert model.info.preprocess == Preprocess(
        size=tuple(config["size"]) if isinstance(config["size"], (list, tuple))
        else (config["size"],) * 2,
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        interpolation=config["interpolation"],
        resize_mode=config["resize_mode"],
        fill_color=config["fill_color"],
    )  # fmt: skip


def test_label_vectors_are_open_clips_classifier(checkpoint):
    model = OpenClipModel(local(checkpoint))
    theirs = open_clip.create_model(f"local-dir:{checkpoint}").eval()
    tokenizer = open_clip.get_tokenizer(f"local-dir:{checkpoint}")
    names, templates = ["dog", "kiwi bird", "Straße"], ("a photo of a {}.", "a {}", "the {} here")
    expected = open_clip.build_zero_shot_classifier(theirs, tokenizer, names, templates).numpy().T
    labels = LabelSet("set", tuple(Label(name) for name in names), templates)
    vectors = label_vectors(labels, model)
    assert vectors.vectors == pytest.approx(expected, abs=1e-6)
    assert vectors.logit_scale == pytest.approx(float(theirs.logit_scale.exp()), rel=1e-6)
    bias = 0.0 if theirs.logit_bias is None else float(theirs.logit_bias)
    assert vectors.logit_bias == pytest.approx(bias)


def test_the_bias_of_siglip_is_not_lost(tmp_path):
    assert OpenClipModel(local(make_checkpoint(tmp_path / "s", "siglip"))).logit_bias == -10


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_lower_precision_gives_nearly_the_same_vectors(checkpoint, precision):
    size = OpenClipModel(local(checkpoint)).info.preprocess.size
    pixels = np.stack([np.asarray(picture(*size[::-1], seed)) for seed in range(4)])
    exact = OpenClipModel(local(checkpoint)).encode_images(pixels)
    lower = OpenClipModel(local(checkpoint, precision=precision)).encode_images(pixels)
    assert lower.dtype == np.float32
    assert (exact * lower).sum(axis=1).min() > 0.999
    assert not np.array_equal(exact, lower)


def test_many_texts_are_encoded_in_parts_and_in_order(vit):
    model = OpenClipModel(local(vit))
    texts = [f"a photo of thing number {number}" for number in range(600)]
    vectors = model.encode_texts(texts)
    assert vectors.shape == (600, model.info.dim)
    assert vectors[[0, 300, 599]] == pytest.approx(
        model.encode_texts([texts[0], texts[300], texts[599]]), abs=1e-5
    )


def test_the_model_id_names_weights_and_preprocessing(tmp_path):
    first = make_checkpoint(tmp_path / "a" / "net", seed=0)
    again = make_checkpoint(tmp_path / "b" / "net", seed=0)
    other = make_checkpoint(tmp_path / "c" / "net", seed=1)
    squashed = make_checkpoint(tmp_path / "d" / "net", seed=0)
    config = json.loads((squashed / "open_clip_config.json").read_text())
    config["preprocess_cfg"]["resize_mode"] = "squash"
    (squashed / "open_clip_config.json").write_text(json.dumps(config))
    ids = [describe_model(local(folder)).model_id for folder in (first, again, other, squashed)]
    assert ids[0] == ids[1]
    assert len(set(ids)) == 3
    assert all(model_id.startswith("net-") for model_id in ids)


def test_a_name_with_weights_from_a_file(tmp_path):
    name = "ViT-S-32-alt"
    torch.manual_seed(0)
    theirs = open_clip.create_model(name).eval()
    weights = tmp_path / "weights.pt"
    torch.save({"state_dict": theirs.state_dict()}, weights)
    model = OpenClipModel(ModelSpec(name, str(weights), device="cpu"))
    assert model.info.model_id.startswith("ViT-S-32-alt-")
    texts = ["a dog", "a cat"]
    with torch.no_grad():
        tokens = open_clip.get_tokenizer(name)(texts)
        expected = theirs.encode_text(tokens, normalize=True).numpy()
    assert model.encode_texts(texts) == pytest.approx(expected, abs=1e-5)


class Explosive:
    """Unpickling this writes a file: what a hostile checkpoint would do, harmlessly."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_weights_are_not_unpickled(tmp_path, vit):
    folder = tmp_path / "hostile"
    folder.mkdir()
    (folder / "open_clip_config.json").write_bytes((vit / "open_clip_config.json").read_bytes())
    touched = tmp_path / "touched"
    (folder / "model.pth").write_bytes(pickle.dumps({"state_dict": Explosive(touched)}))
    with pytest.raises(ModelError, match="cannot load"):
        OpenClipModel(local(folder))
    assert not touched.exists()


def test_pth_weights_load_without_unpickling_code(tmp_path, vit):
    folder = tmp_path / "plain"
    folder.mkdir()
    (folder / "open_clip_config.json").write_bytes((vit / "open_clip_config.json").read_bytes())
    state = open_clip.create_model(f"local-dir:{vit}").state_dict()
    torch.save(state, folder / "model.pth")
    assert OpenClipModel(local(folder)).encode_texts(["a dog"]) == pytest.approx(
        OpenClipModel(local(vit)).encode_texts(["a dog"]), abs=1e-6
    )


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (ModelSpec("ViT-B-23"), "no model is called 'ViT-B-23'; did you mean"),
        (ModelSpec("xyzzy"), "no model is called 'xyzzy'"),
        (ModelSpec("ViT-B-32"), "ViT-B-32 needs weights: --pretrained=FILE, or one of openai"),
        (ModelSpec("ViT-B-32", "nosuchtag"), "neither a file nor a tag of ViT-B-32"),
        (ModelSpec("local-dir:/nowhere"), "no open_clip_config.json in /nowhere"),
        (ModelSpec("local-dir:/nowhere", "tag"), "--pretrained goes with an open_clip name"),
        (ModelSpec("memory://nowhere/model"), "cannot copy the model from memory://nowhere/model"),
        (ModelSpec("nostore://bucket/model"), "cannot copy the model from nostore://"),
        (ModelSpec("hf-hub:nobody/nothing"), "cannot get hf-hub:nobody/nothing"),
    ],
)
def test_a_model_that_is_not_there(spec, message, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match=message) as caught:
        describe_model(spec)
    assert "\n" not in str(caught.value)


def test_broken_folders(tmp_path, vit):
    config = (vit / "open_clip_config.json").read_text()
    for name, text, message in [
        ("not-json", "{", "is not a model's"),
        ("no-config", "{}", "is not a model's"),
        ("no-weights", config, "no weights"),
    ]:
        folder = tmp_path / name
        folder.mkdir()
        (folder / "open_clip_config.json").write_text(text)
        with pytest.raises(ModelError, match=message):
            describe_model(local(folder))


def test_truncated_weights(tmp_path, vit):
    folder = tmp_path / "cut"
    folder.mkdir()
    (folder / "open_clip_config.json").write_bytes((vit / "open_clip_config.json").read_bytes())
    whole = (vit / "open_clip_model.safetensors").read_bytes()
    (folder / "open_clip_model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelError, match="cannot load"):
        OpenClipModel(local(folder))


def test_weights_of_another_architecture(tmp_path, vit):
    folder = make_checkpoint(tmp_path / "mixed", "resnet")
    (folder / "open_clip_config.json").write_bytes((vit / "open_clip_config.json").read_bytes())
    with pytest.raises(ModelError, match="cannot load"):
        OpenClipModel(local(folder))


def test_a_requested_device_that_is_missing_is_an_error(vit, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)  # on a machine with one too
    with pytest.raises(ModelError, match="--device=cuda, but this machine has no CUDA device"):
        OpenClipModel(replace(local(vit), device="cuda"))


def test_auto_says_what_it_chose(vit, caplog):
    caplog.set_level("INFO", "beamtag")
    OpenClipModel(replace(local(vit), device="auto"))
    assert "device: auto chose" in caplog.text


def test_a_hub_model_is_loaded_from_the_hubs_cache(tmp_path, vit, monkeypatch):
    # The hub's own cache layout, made on the spot, read by the hub's own client.
    revision = "0" * 40
    repository = tmp_path / "models--org--net"
    snapshot = repository / "snapshots" / revision
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(revision)
    for file in vit.iterdir():
        (snapshot / file.name).write_bytes(file.read_bytes())
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    model = OpenClipModel(ModelSpec("hf-hub:org/net", device="cpu"))
    assert model.info.model_id.startswith("net-")
    assert model.encode_texts(["a dog"]) == pytest.approx(
        OpenClipModel(local(vit)).encode_texts(["a dog"]), abs=1e-6
    )


@pytest.fixture
def store(vit, tmp_path, monkeypatch):
    """The small model in an object store, and a cache folder of this test's own."""
    monkeypatch.setenv("BEAMTAG_CACHE", str(tmp_path / "cache"))
    fsspec.register_implementation("counting", CountingStore, clobber=True)
    CountingStore.forget()
    for file in vit.iterdir():
        CountingStore().pipe_file(f"/models/net/{file.name}", file.read_bytes())
    CountingStore().pipe_file("/models/net/notes.md", b"not part of the model")
    return "counting://models/net"


def test_a_folder_on_object_storage_is_copied_once(store, vit):
    describe_model.cache_clear()
    info = describe_model(ModelSpec(store))
    assert info.model_id.startswith("net-")
    assert info.dim == describe_model(local(vit)).dim
    OpenClipModel(ModelSpec(store, device="cpu"))
    assert CountingStore.fetched == {
        "/models/net/open_clip_config.json": 1,
        "/models/net/open_clip_model.safetensors": 1,
    }


def test_processes_that_ask_at_once_wait_for_one_copy(store):
    folders = []
    threads = [
        threading.Thread(target=lambda: folders.append(modelstore.fetch_folder(store)))
        for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(folders) == 6
    assert len(set(folders)) == 1
    assert set(CountingStore.fetched.values()) == {1}


def test_a_model_replaced_in_place_is_a_new_copy(store):
    before = modelstore.fetch_folder(store)
    CountingStore().pipe_file("/models/net/open_clip_config.json", b"{}   ")
    assert modelstore.fetch_folder(store) != before


def test_a_copy_that_does_not_arrive_whole_is_not_kept(store):
    CountingStore.cut = 100
    with pytest.raises(OSError, match="100 bytes arrived of"):
        modelstore.fetch_folder(store)
    CountingStore.cut = None
    folder = modelstore.fetch_folder(store)
    assert (folder / "open_clip_model.safetensors").stat().st_size > 100
    leftovers = {path.suffix for path in folder.parent.iterdir()} - {"", ".lock"}
    assert not leftovers
