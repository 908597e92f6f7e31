from __future__ import annotations

import copy
import functools
import json
import shutil
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from checkpoints import (
    CONFIGS,
    WORDS,
    make_checkpoint,
    make_transformers_files,
    save_big_vision,
    save_weights,
)
from safetensors.torch import load_file

from transforms.model import (
    OpenClipModel,
    TextModel,
    forget_models,
    loaded_towers,
    shared_model,
    shared_text_model,
)
from transforms.modelstore import ModelError, locate_model
from transforms.records import ModelSpec
from transforms.texttower import (
    LONG_WORD,
    Tokenizer,
    TowerError,
    load_text_tower,
    read_text_weights,
)

TEXTS = ["a photo of a dog", "a cat", "?", "Straße, kiwi bird", "one two three " * 20]

Weights = dict[str, torch.Tensor]


@pytest.fixture(autouse=True)
def _no_model_is_loaded():
    forget_models()


def local(folder: Path) -> ModelSpec:
    return ModelSpec(f"local-dir:{folder}", device="cpu")


def no_image_tower(model: TextModel) -> bool:
    names = {name.split(".")[0] for name, _ in model._model.named_parameters()}
    names |= {name.split(".")[0] for name, _ in model._model.named_buffers()}
    return not names & {"visual", "text_decoder"}


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Callable[[str], Path]:
    """A checkpoint of a kind, made once."""
    folder = tmp_path_factory.mktemp("made")
    return functools.cache(lambda kind: make_checkpoint(folder / kind, kind))


@pytest.fixture(scope="module")
def whole(made) -> Callable[[str], OpenClipModel]:
    """The whole model of a kind, loaded once, and not as the process's shared one."""
    return functools.cache(lambda kind: OpenClipModel(local(made(kind))))


def changed(folder: Path, target: Path, change: Callable[[Weights], Weights]) -> Path:
    """A model folder like another one, but for its weights."""
    shutil.copytree(folder, target)
    save_weights(target, change(load_file(folder / "open_clip_model.safetensors")))
    return target


@pytest.mark.parametrize("kind", sorted(CONFIGS))
def test_the_text_tower_alone_gives_the_whole_models_vectors(kind, made, whole):
    expected = whole(kind)
    forget_models()
    text = shared_text_model(local(made(kind)))
    assert loaded_towers() == {"text"}
    assert type(text) is TextModel
    assert text.encode_texts(TEXTS) == pytest.approx(expected.encode_texts(TEXTS), abs=1e-6)
    assert text.text_windows(TEXTS[-1]) == expected.text_windows(TEXTS[-1])
    assert text.info == expected.info
    assert (text.logit_scale, text.logit_bias) == (expected.logit_scale, expected.logit_bias)


@pytest.mark.parametrize("kind", sorted(CONFIGS))
def test_there_is_no_image_tower_in_it(kind, made, whole):
    text = TextModel(local(made(kind)))
    assert no_image_tower(text)
    assert not no_image_tower(whole(kind))
    theirs = {
        name: value
        for name, value in whole(kind)._model.state_dict().items()
        if not name.startswith(("visual.", "text_decoder."))
    }
    ours = text._model.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("kind", sorted(CONFIGS))
def test_of_the_file_only_the_text_tower_is_read(kind, made):
    weights = made(kind) / "open_clip_model.safetensors"
    names = read_text_weights(weights).keys()
    others = load_file(weights).keys() - names
    assert names
    assert others
    assert {name.split(".")[0] for name in others} <= {"visual", "text_decoder"}


def without_image_tower(state: Weights) -> Weights:
    return {name: value for name, value in state.items() if not name.startswith("visual.")}


def with_garbage_for_an_image_tower(state: Weights) -> Weights:
    return {
        name: torch.full((3,), torch.nan) if name.startswith("visual.") else value
        for name, value in state.items()
    }


@pytest.mark.parametrize("kind", sorted(CONFIGS))
@pytest.mark.parametrize("damage", [without_image_tower, with_garbage_for_an_image_tower])
def test_the_image_towers_weights_do_not_matter(kind, damage, made, whole, tmp_path):
    folder = changed(made(kind), tmp_path / kind, damage)
    expected = whole(kind).encode_texts(TEXTS)
    forget_models()
    assert shared_text_model(local(folder)).encode_texts(TEXTS) == pytest.approx(expected, abs=1e-6)
    assert loaded_towers() == {"text"}


def test_the_whole_model_does_need_its_image_tower(made, tmp_path):
    folder = changed(made("vit"), tmp_path / "vit", without_image_tower)
    with pytest.raises(ModelError, match="cannot load"):
        shared_model(local(folder))
    assert loaded_towers() == set()


def peak_bytes() -> int:
    """The most memory that this process ever had."""
    (line,) = [
        line for line in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in line
    ]
    return int(line.split()[1]) * 1024


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


def test_a_big_image_tower_takes_no_memory(tmp_path):
    """An image tower of 3 GiB, in the configuration and in the file, where it is a hole."""
    folder = make_checkpoint(tmp_path / "big")
    config = json.loads((folder / "open_clip_config.json").read_text())
    config["model_cfg"]["vision_cfg"].update(width=2048, layers=16, head_width=64)
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    weights = folder / "open_clip_model.safetensors"
    content = weights.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    end = max(entry["data_offsets"][1] for name, entry in header.items())
    size = 3 * 2**30
    header["visual.huge"] = {"dtype": "U8", "shape": [size], "data_offsets": [end, end + size]}
    described = json.dumps(header).encode()
    with weights.open("wb") as file:
        file.write(struct.pack("<Q", len(described)) + described + content[8 + length :])
        file.truncate(file.tell() + size)
    Path("/proc/self/clear_refs").write_text("5")  # the peak is now what is resident
    before = resident_bytes()
    assert peak_bytes() - before < 2**28
    model = load_text_tower(locate_model(local(folder)))
    assert model.encode_text(torch.zeros(1, 16, dtype=torch.int64)).shape == (1, 32)
    assert peak_bytes() - before < 2**28


def old_names(state: Weights) -> Weights:
    return {name.removeprefix("text."): value for name, value in state.items()}


def of_distributed_training(state: Weights) -> Weights:
    return {f"module.{name}": value for name, value in state.items()}


def longer_context(state: Weights) -> Weights:
    name = "text.positional_embedding"
    name = name if name in state else "positional_embedding"
    return {**state, name: torch.randn(24, 32, generator=torch.Generator().manual_seed(0))}


def scale_in_a_row(state: Weights) -> Weights:
    rows = {name: state[name].reshape(1) for name in ("logit_scale", "logit_bias") if name in state}
    return {**state, **rows}


def without_bias(state: Weights) -> Weights:
    return {name: value for name, value in state.items() if name != "logit_bias"}


def half_precision(state: Weights) -> Weights:
    return {name: value.half() for name, value in state.items()}


def with_position_ids(state: Weights) -> Weights:
    return {**state, "text.transformer.embeddings.position_ids": torch.arange(16)[None]}


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("timm", old_names),
        ("vit", of_distributed_training),
        ("vit", longer_context),
        ("siglip", longer_context),
        ("siglip", scale_in_a_row),
        ("siglip", without_bias),
        ("vit", half_precision),
        ("hf", with_position_ids),
    ],
)
def test_checkpoints_that_open_clip_converts(
    kind: str, change: Callable[[Weights], Weights], made, tmp_path
):
    folder = changed(made(kind), tmp_path / kind, change)
    whole = OpenClipModel(local(folder))
    text = TextModel(local(folder))
    assert text.encode_texts(TEXTS) == pytest.approx(whole.encode_texts(TEXTS), abs=1e-6)
    assert (text.logit_scale, text.logit_bias) == (whole.logit_scale, whole.logit_bias)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("wrapped", [True, False])
def test_weights_that_torch_saved(made, whole, tmp_path, zipped, wrapped):
    expected = whole("vit").encode_texts(TEXTS)
    forget_models()
    folder = tmp_path / "saved"
    shutil.copytree(made("vit"), folder)
    state = of_distributed_training(load_file(folder / "open_clip_model.safetensors"))
    (folder / "open_clip_model.safetensors").unlink()
    content = {"epoch": 3, "state_dict": state} if wrapped else state
    torch.save(content, folder / "model.pth", _use_new_zipfile_serialization=zipped)
    assert not {name for name in read_text_weights(folder / "model.pth") if "visual" in name}
    text = shared_text_model(local(folder))
    assert loaded_towers() == {"text"}
    assert text.encode_texts(TEXTS) == pytest.approx(expected, abs=1e-6)


@pytest.fixture
def named(tmp_path, monkeypatch) -> str:
    """A small architecture that open_clip knows by a name, as it knows its own."""
    monkeypatch.setattr(open_clip.factory, "_MODEL_CONFIG_PATHS", [])
    config = copy.deepcopy(CONFIGS["timm"]["model_cfg"])
    config["init_logit_bias"] = -10
    config["text_cfg"].update(proj_bias=True, pool_type="last", no_causal_mask=True)
    (tmp_path / "small-test-net.json").write_text(json.dumps(config))
    open_clip.add_model_config(tmp_path / "small-test-net.json")
    return "small-test-net"


@pytest.fixture
def theirs(named) -> Any:
    torch.manual_seed(0)
    return open_clip.create_model(named).eval()


@pytest.fixture
def expected(theirs, named) -> np.ndarray:
    with torch.no_grad():
        return theirs.encode_text(open_clip.get_tokenizer(named)(TEXTS), normalize=True).numpy()


def test_a_named_model_with_weights_from_a_file(named, theirs, expected, tmp_path):
    weights = tmp_path / "weights.pt"
    torch.save({"state_dict": theirs.state_dict()}, weights)
    text = shared_text_model(ModelSpec(named, str(weights), device="cpu"))
    assert loaded_towers() == {"text"}
    assert text.encode_texts(TEXTS) == pytest.approx(expected, abs=1e-6)


def test_a_model_that_cannot_be_taken_apart_is_loaded_whole(
    named, theirs, expected, tmp_path, caplog
):
    """Weights in Google's format, whose towers only open_clip knows."""
    caplog.set_level("WARNING", "beamtag")
    save_big_vision(tmp_path / "weights.npz", theirs)
    spec = ModelSpec(named, str(tmp_path / "weights.npz"), device="cpu")
    with pytest.raises(TowerError, match="npz weights cannot be taken apart"):
        TextModel(spec)
    model = shared_text_model(spec)
    assert isinstance(model, OpenClipModel)
    assert loaded_towers() == {"image", "text"}
    assert model.encode_texts(TEXTS) == pytest.approx(expected, abs=1e-6)
    (warning,) = [record.getMessage() for record in caplog.records if record.name == "beamtag"]
    assert "small-test-net is loaded whole" in warning
    assert shared_text_model(spec) is model


def test_mobileclips_own_format_is_not_taken_for_ours(made, tmp_path):
    name = "image_encoder.model.patch_embed.0.rbr_conv.0.conv.weight"
    folder = changed(made("vit"), tmp_path / "m", lambda state: {**state, name: torch.zeros(1)})
    with pytest.raises(TowerError, match="MobileCLIP"):
        load_text_tower(locate_model(local(folder)))


@pytest.mark.parametrize(
    "damage",
    [
        lambda state: {name: value for name, value in state.items() if name != "ln_final.weight"},
        lambda state: {**state, "ln_more.weight": torch.zeros(32)},
        lambda state: {**state, "text_projection": torch.zeros(32, 31)},
    ],
    ids=["missing", "unknown", "shape"],
)
def test_a_text_tower_that_is_not_whole_is_an_error(made, tmp_path, damage):
    folder = changed(made("vit"), tmp_path / "damaged", damage)
    with pytest.raises(TowerError):
        load_text_tower(locate_model(local(folder)))
    with pytest.raises(ModelError, match="cannot load"):
        shared_text_model(local(folder))
    assert loaded_towers() == set()


@pytest.fixture(scope="module")
def tokenizer(vit) -> Tokenizer:
    return Tokenizer(f"local-dir:{vit}")


@pytest.mark.parametrize("words", [1, 20, 75, 76, 77, 150, 151, 400])
def test_long_texts_come_in_windows_that_fit(tokenizer, words):
    context = tokenizer._tokenize.context_length
    text = " ".join(["dog"] * words)
    windows = tokenizer.windows(text)
    # Every word of CLIP's vocabulary is one token; the model's own take two of the context.
    assert len(windows) == -(-words // (context - 2))
    assert " ".join(windows) == text
    sizes = [len(window.split()) for window in windows]
    assert max(sizes) - min(sizes) <= 2


@pytest.mark.parametrize(
    "text",
    [
        "x" * 3000,
        "!" * 500,
        "猫が草の上で寝ている。" * 60,
        "a dog! " * 10 + "🐕" * 200 + " in the grass" * 30,
        "line\n\nbreaks\tand   spaces " * 60,
    ],
)
def test_windows_lose_nothing(tokenizer, text):
    windows = tokenizer.windows(text)
    assert len(windows) > 1
    assert all(tokenizer.fits(window) for window in windows)
    assert "".join("".join(windows).split()) == "".join(text.split())


def test_long_words_take_time_by_their_length(vit):
    tokenizer = Tokenizer(f"local-dir:{vit}")
    letters = np.random.default_rng(0).integers(97, 123, 40_000, dtype=np.uint8)
    text = letters.tobytes().decode()
    seen = []
    clip = tokenizer._tokenize
    tokenize = clip.encode
    clip.encode = lambda text: seen.append(text) or tokenize(text)
    windows = tokenizer.windows(text)
    assert "".join("".join(windows).split()) == text
    assert max(len(word) for text in seen for word in text.split()) <= LONG_WORD
    assert tokenizer.windows("b" * LONG_WORD + " c")[0].startswith("b" * 20)


def test_the_tokenizer_does_not_remember_every_word(vit, monkeypatch):
    monkeypatch.setattr("transforms.texttower.CACHED_WORDS", 1000)
    tokenizer = Tokenizer(f"local-dir:{vit}")
    before = tokenizer.rows(["a dog <end_of_text>"])
    letters = "abcdefghijklmnop"
    words = [a + b + c + "w" for a in letters for b in letters for c in letters]
    for start in range(0, len(words), 50):
        tokenizer.windows(" ".join(words[start : start + 50]))
    assert len(tokenizer._tokenize.cache) <= 1000 + 200
    assert (tokenizer.rows(["a dog <end_of_text>"]) == before).all()


@pytest.fixture
def tokenized(tmp_path) -> Path:
    """A SigLIP-style model with a tokenizer of transformers' kind in its folder."""
    folder = tmp_path / "tokenized"
    make_transformers_files(folder)
    kwargs = {"clean": "canonicalize"}
    extra = {"hf_tokenizer_name": "any", "tokenizer_kwargs": kwargs, "vocab_size": len(WORDS)}
    return make_checkpoint(folder, "siglip", text=extra)


def test_windows_by_a_tokenizer_of_transformers(tokenized):
    tokenizer = Tokenizer(f"local-dir:{tokenized}")
    text = "a photo of a dog on a sunny day in the park " * 20
    windows = tokenizer.windows(text)
    assert len(windows) > 1
    assert all(tokenizer.fits(window) for window in windows)
    assert " ".join(windows) == text.strip()


def test_tokenizers_of_transformers(tokenized):
    model = shared_text_model(local(tokenized))
    theirs = open_clip.create_model(f"local-dir:{tokenized}").eval()
    tokens = open_clip.get_tokenizer(f"local-dir:{tokenized}")(["A photo of a dog!", "cat"])
    assert tokens[0, :5].tolist() == [2, 3, 4, 2, 5]
    with torch.no_grad():
        expected = theirs.encode_text(tokens, normalize=True).numpy()
    assert model.encode_texts(["A photo of a dog!", "cat"]) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("kind", [OpenClipModel, TextModel])
def test_a_missing_tokenizer_package_names_the_extra(kind, tokenized, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)  # as if it were not installed
    with pytest.raises(ModelError, match=r"pip install 'beamtag\[hf\]'"):
        kind(local(tokenized))
