"""What `beamtag adapt` learns of labels from pictures: vectors in place of words, in a file."""

from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Vectors = npt.NDArray[np.float32]


class AdapterError(Exception):
    """A file is no adapter, or not one for this model; one line says why."""


@dataclass(frozen=True, slots=True)
class Adapter:
    """For the labels `keys` of one model: `vectors[K, D]`, of any length, and `biases[K]`.

    A label's logit is logit_scale * (its vector x embedding) + its bias. `told` is what a person
    may want to know of how it was made.
    """

    model_id: str
    keys: tuple[str, ...]
    vectors: Vectors
    biases: Vectors
    told: dict[str, object]


def adapter_bytes(adapter: Adapter) -> bytes:
    """An adapter as a safetensors file."""
    from safetensors.numpy import save

    about = {"model_id": adapter.model_id, "keys": adapter.keys, "told": adapter.told}
    metadata = {"beamtag_adapter": json.dumps(about, ensure_ascii=False)}
    return bytes(save({"vectors": adapter.vectors, "biases": adapter.biases}, metadata))


def parse_adapter(content: bytes, model_id: str | None = None) -> Adapter:
    """The adapter of a file's bytes, for the model `model_id` if told. Raises `AdapterError`."""
    from safetensors.numpy import load

    try:
        length = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + length])
        about = json.loads(header["__metadata__"]["beamtag_adapter"])
        arrays = load(content)
        adapter = Adapter(
            str(about["model_id"]),
            tuple(map(str, about["keys"])),
            arrays["vectors"],
            arrays["biases"],
            dict(about["told"]),
        )
    # safetensors has an exception of its own, which is none of these.
    except Exception as error:
        raise AdapterError(f"it is not a file of beamtag adapt ({type(error).__name__})") from error
    if not _is_whole(adapter):
        raise AdapterError("it is not a whole file of beamtag adapt")
    if model_id is not None and adapter.model_id != model_id:
        raise AdapterError(f"it was made for {adapter.model_id}, and the model is {model_id}")
    return adapter


def _is_whole(adapter: Adapter) -> bool:
    vectors, biases = adapter.vectors, adapter.biases
    shapes = vectors.ndim, len(vectors), biases.shape
    return (
        shapes == (2, len(adapter.keys), (len(adapter.keys),))
        and len(set(adapter.keys)) == len(adapter.keys)
        and vectors.dtype == biases.dtype == np.float32
        and bool(np.isfinite(vectors).all() and np.isfinite(biases).all())
        # A label without a direction is none.
        and bool(vectors.any(axis=1).all())
    )
