from __future__ import annotations

import json
import struct
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save

from transforms.adapters import Adapter, AdapterError, adapter_bytes, parse_adapter

ADAPTER = Adapter(
    model_id="ViT-B-32-0123abcd",
    keys=("Q144", "Straße", "a/b"),
    vectors=np.random.default_rng(0).normal(size=(3, 8)).astype(np.float32),
    biases=np.float32([0.5, -1, 0]),
    told={"made_at": "2026-01-31", "held_out": {"before": 0.5, "after": 0.75}, "κ": [1, 2]},
)
CONTENT = adapter_bytes(ADAPTER)
LENGTH = int.from_bytes(CONTENT[:8], "little")


def test_what_is_written_is_read():
    for model_id in (None, ADAPTER.model_id):
        found = parse_adapter(CONTENT, model_id)
        assert (found.model_id, found.keys, found.told) == (
            ADAPTER.model_id,
            ADAPTER.keys,
            ADAPTER.told,
        )
        assert (found.vectors == ADAPTER.vectors).all()
        assert (found.biases == ADAPTER.biases).all()
        assert found.vectors.dtype == found.biases.dtype == np.float32
    # The same content for the same adapter: its digest is part of a label set's name.
    assert adapter_bytes(found) == CONTENT


def test_another_models_adapter_is_refused():
    with pytest.raises(AdapterError) as caught:
        parse_adapter(CONTENT, "ViT-B-32-ffffffff")
    assert str(caught.value) == (
        "it was made for ViT-B-32-0123abcd, and the model is ViT-B-32-ffffffff"
    )


def with_header(header: Any, length: int | None = None) -> bytes:
    told = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(told) if length is None else length) + told + CONTENT[8 + LENGTH :]


def about(**changes: Any) -> bytes:
    told = {"model_id": ADAPTER.model_id, "keys": ADAPTER.keys, "told": {}, **changes}
    arrays = {"vectors": ADAPTER.vectors, "biases": ADAPTER.biases}
    return bytes(save(arrays, {"beamtag_adapter": json.dumps(told)}))


HEADER = json.loads(CONTENT[8 : 8 + LENGTH])
GARBAGE = {
    "nothing": b"",
    "a few bytes": b"abc",
    "text": b"name: things\nlabels: [dog]\n" * 20,
    "a picture": b"\x89PNG\r\n\x1a\n" + bytes(500),
    "zeros": bytes(4096),
    "another safetensors file": bytes(save({"vectors": ADAPTER.vectors})),
    "one with metadata of others": bytes(save({"vectors": ADAPTER.vectors}, {"format": "pt"})),
    "more behind it": CONTENT + b"\0",
    "a header longer than the file": struct.pack("<Q", len(CONTENT)) + CONTENT[8:],
    "a header of 2^63": struct.pack("<Q", 2**63) + CONTENT[8:],
    "a header of 2^64-1": struct.pack("<Q", 2**64 - 1) + CONTENT[8:],
    "a header of no bytes": struct.pack("<Q", 0) + CONTENT[8:],
    "a header cut off": with_header(CONTENT[8 : 8 + LENGTH], LENGTH - 7),
    "a deep header": with_header(b"[" * 100_000),
    "a header that is a list": with_header([HEADER]),
    "bytes that are no UTF-8": with_header(b'{"\xff\xfe": 1}'),
    "tensors beyond the end": with_header(
        {**HEADER, "vectors": {"dtype": "F32", "shape": [3, 2**40], "data_offsets": [0, 3 * 2**42]}}
    ),
    "tensors that overlap": with_header(
        {**HEADER, "vectors": {"dtype": "F32", "shape": [3, 8], "data_offsets": [0, 96]}}
    ),
    "metadata that is no JSON": with_header({**HEADER, "__metadata__": {"beamtag_adapter": "{"}}),
    "metadata that is a number": with_header({**HEADER, "__metadata__": {"beamtag_adapter": "1"}}),
    "no model": about(model_id=None, keys=None),
    "keys that are too few": about(keys=["Q144"]),
    "keys that are alike": about(keys=["Q144", "Q144", "b"]),
    "told as a number": about(told=5),
    "no biases": bytes(
        save({"vectors": ADAPTER.vectors}, {"beamtag_adapter": json.dumps({"keys": []})})
    ),
    **{
        f"arrays: {name}": adapter_bytes(replace(ADAPTER, **changes))
        for name, changes in {
            "NaN": {"vectors": ADAPTER.vectors * np.float32(np.nan)},
            "an infinite bias": {"biases": np.float32([0, np.inf, 0])},
            "no direction": {"vectors": ADAPTER.vectors * np.float32([[1], [0], [1]])},
            "float64": {"vectors": ADAPTER.vectors.astype(np.float64)},
            "whole numbers": {"biases": np.array([1, 2, 3])},
            "vectors too few": {"vectors": ADAPTER.vectors[:2]},
            "biases too many": {"biases": np.zeros(4, np.float32)},
            "flat vectors": {"vectors": ADAPTER.vectors[:, 0].copy()},
            "biases in two dimensions": {"biases": np.zeros((3, 1), np.float32)},
            "a single number": {"biases": np.float32(1)[None].reshape(())},
        }.items()
    },
}


@pytest.mark.parametrize("content", GARBAGE.values(), ids=GARBAGE.keys())
def test_what_is_no_adapter_is_refused_in_one_line(content):
    with pytest.raises(AdapterError) as caught:
        parse_adapter(content, ADAPTER.model_id)
    told = str(caught.value)
    assert told.startswith("it is not a ")
    assert "of beamtag adapt" in told
    assert "\n" not in told


def test_a_file_that_is_cut_anywhere_is_refused():
    for length in range(len(CONTENT)):
        with pytest.raises(AdapterError, match="it is not a file of beamtag adapt"):
            parse_adapter(CONTENT[:length])


@settings(max_examples=300, deadline=None)
@given(st.integers(0, len(CONTENT) - 1), st.integers(0, 255))
def test_a_byte_that_has_changed_never_breaks_the_reader(place, value):
    content = CONTENT[:place] + bytes([value]) + CONTENT[place + 1 :]
    try:
        found = parse_adapter(content)
    except AdapterError:
        return
    assert found.vectors.shape[0] == found.biases.shape[0] == len(found.keys)
    assert np.isfinite(found.vectors).all()
