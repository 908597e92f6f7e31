"""Small real implementations of the seams that tests need to see through or to break."""

from __future__ import annotations

import threading
from collections import Counter
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from fsspec.implementations.memory import MemoryFileSystem


class CountingStore(MemoryFileSystem):
    """An object store in memory that counts whole-object downloads, and can cut them short."""

    protocol = "counting"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]
    fetched: ClassVar[Counter[str]] = Counter()
    cut: ClassVar[int | None] = None
    _counting: ClassVar[threading.Lock] = threading.Lock()

    @classmethod
    def forget(cls) -> None:
        cls.store.clear()
        cls.pseudo_dirs[:] = [""]
        cls.fetched.clear()
        cls.cut = None

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return "/" + path.removeprefix("counting://").strip("/")

    def get_file(self, rpath: str, lpath: str, *args: Any, **kwargs: Any) -> None:
        with self._counting:
            self.fetched[self._strip_protocol(rpath)] += 1
        Path(lpath).write_bytes(self.cat_file(rpath)[: self.cut])


class FakeModel:
    """A model whose vectors are the mean colour, and which fails as it is told to.

    Pictures that contain the value `poison` fail (alone or in company), those that contain
    `nan` come out as NaN, and more than `room` pictures do not fit into memory.
    """

    def __init__(
        self, *, poison: int | None = None, nan: int | None = None, room: int | None = None
    ) -> None:
        self.poison = poison
        self.nan = nan
        self.room = room
        self.calls: list[int] = []

    def text_windows(self, text: str) -> list[str]:
        words = text.split()
        return [" ".join(words[start : start + 4]) for start in range(0, len(words), 4)] or [""]

    def encode_texts(self, texts: list[str]) -> np.ndarray:
        """Red for what is mostly letters a, green for b, blue for the rest."""
        if any("poison" in text for text in texts):
            raise RuntimeError("a text that the model cannot take")
        counts = [[text.count("a") + 0.1, text.count("b") + 0.1, 0.1] for text in texts]
        vectors = np.array(counts, dtype=np.float32)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    def encode_images(self, pixels: np.ndarray) -> np.ndarray:
        self.calls.append(len(pixels))
        if self.room is not None and len(pixels) > self.room:
            raise torch.OutOfMemoryError(f"{len(pixels)} pictures do not fit")
        if self.poison is not None and (pixels == self.poison).any():
            raise RuntimeError("a picture that the model cannot take")
        vectors = pixels.mean(axis=(1, 2)) + 1
        if self.nan is not None:
            vectors[(pixels == self.nan).any(axis=(1, 2, 3))] = np.nan
        return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
