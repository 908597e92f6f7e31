"""OpenClipModel: whatever open_clip loads, behind two methods; torch and open_clip, no Beam.

torch and open_clip are imported where they are used: a launcher that only checks its command line
does not wait for them.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import re
import threading
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from transforms.modelstore import ModelError, describe_model, first_line, locate_model
from transforms.records import ModelSpec

if TYPE_CHECKING:
    import torch

TEXT_BATCH = 256

LONG_WORD = 200
"""Characters. The time that a tokenizer takes for a word may grow with its square."""

_LONG_WORD = re.compile(rf"(\S{{{LONG_WORD}}})(?=\S)")

CACHED_WORDS = 50_000
"""How many words open_clip's own tokenizer may remember; left alone it keeps every one."""

logger = logging.getLogger("beamtag")


def resolve_device(device: str) -> str:
    """`cpu` or `cuda`, as asked or, for `auto`, as found; what `auto` chose is logged.

    Raises `ModelError` where a requested device is absent: nothing falls back silently.
    """
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        raise ModelError("--device=cuda, but this machine has no CUDA device that torch can use")
    if device != "auto":
        return device
    chosen = "cuda" if torch.cuda.is_available() else "cpu"
    what = (
        torch.cuda.get_device_name() if chosen == "cuda" else f"{torch.get_num_threads()} threads"
    )
    logger.info("device: auto chose %s (%s)", chosen, what)
    return chosen


class OpenClipModel:
    """A contrastive model in memory: pixels and sentences to vectors of one space.

    `logit_scale` is exponentiated, as it multiplies similarities; `logit_bias` is 0 where the
    model has none.
    """

    def __init__(self, spec: ModelSpec) -> None:
        """Load weights without unpickling code. Raises `ModelError` where that fails."""
        import open_clip
        import torch

        located = locate_model(spec)
        self.info = describe_model(spec)
        self.device = torch.device(resolve_device(spec.device))
        self._precision = spec.precision
        try:
            self._model: Any = open_clip.create_model(
                located.name,
                pretrained=located.pretrained,
                device=self.device,
                require_pretrained=True,
                weights_only=True,
            )
        # Anything at all can be wrong with a checkpoint; each kind of it has its own exception.
        except Exception as error:
            raise ModelError(f"cannot load {spec.name}: {first_line(error)}") from error
        self._model.eval()
        try:
            self._tokenize: Any = open_clip.get_tokenizer(located.name)
        except ImportError as error:
            raise ModelError(
                f"the tokenizer of {spec.name} needs more packages: pip install 'beamtag[hf]' "
                f"({first_line(error)})"
            ) from error
        except Exception as error:
            raise ModelError(f"no tokenizer for {spec.name}: {first_line(error)}") from error
        self._tokenizing = threading.Lock()
        self._words = getattr(self._tokenize, "cache", None)
        # There from the beginning are the words that stand for something else, such as the end.
        self._special = dict(self._words) if isinstance(self._words, dict) else {}
        with torch.inference_mode():
            self.logit_scale = float(self._model.logit_scale.exp())
            bias = getattr(self._model, "logit_bias", None)
            self.logit_bias = 0.0 if bias is None else float(bias)
        preprocess = self.info.preprocess
        shape = (1, 3, 1, 1)
        self._mean = torch.tensor(preprocess.mean, device=self.device).reshape(shape)
        self._std = torch.tensor(preprocess.std, device=self.device).reshape(shape)

    def encode_images(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """L2-normalised `float32[B, D]` vectors of `uint8[B, H, W, 3]` pixels.

        Pixels cross to the device as bytes and are scaled to 0..1 and normalised there.
        """
        import torch

        with torch.inference_mode(), self._autocast():
            # A view in channels-last order: what convolutions like, and no copy.
            images = torch.from_numpy(pixels).to(self.device).permute(0, 3, 1, 2)
            inputs = images.float().div_(255).sub_(self._mean).div_(self._std)
            return _normalized(self._model.encode_image(inputs))

    def encode_texts(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """L2-normalised `float32[N, D]` vectors of sentences, always in fp32: they are few."""
        import torch

        parts = []
        with torch.inference_mode():
            for start in range(0, len(texts), TEXT_BATCH):
                tokens = self._tokens_of(texts[start : start + TEXT_BATCH]).to(self.device)
                parts.append(_normalized(self._model.encode_text(tokens)))
        return np.concatenate(parts)

    def text_windows(self, text: str) -> list[str]:
        """The text in parts that each fit into the model's context, of about equal length.

        A text that fits is its own only window; a longer one is parted between words, or within
        them where there are none. Words of more than `LONG_WORD` characters become several.
        """
        text = _LONG_WORD.sub(r"\1 ", text)
        if self._fits(text):
            return [text]
        words = " ".join(text.split())
        context = int(self._tokenize.context_length)
        count = max(2, -(-self._tokens(words) // (context - self._tokens(""))))
        for parts in (list(_parts(words, count + more)) for more in range(3)):
            if all(self._fits(part) for part in parts):
                return parts
        # Words of very different lengths: what is still too long is parted again.
        return [window for part in parts for window in self.text_windows(part)]

    def _tokens_of(self, texts: Sequence[str], context_length: int | None = None) -> Any:
        """Rows of tokens, one for each text, of the model's length unless told otherwise."""
        # One at a time: the words must not be forgotten while another thread looks one up.
        with self._tokenizing:
            if isinstance(self._words, dict) and len(self._words) > CACHED_WORDS:
                self._words.clear()
                self._words.update(self._special)
            return self._tokenize(list(texts), context_length=context_length)

    def _tokens(self, text: str) -> int:
        """The number of tokens of a text, the model's own at its ends included."""
        (row,) = self._tokens_of([text], len(text.encode()) + 8)
        return int((row != row[-1]).nonzero().max()) + 1 if (row != row[-1]).any() else 0

    def _fits(self, text: str) -> bool:
        """Whether nothing of a text is cut off.

        What does not fit is cut and ended by the tokenizer: then it differs from the uncut row.
        """
        context = int(self._tokenize.context_length)
        (cut,) = self._tokens_of([text], context)
        (whole,) = self._tokens_of([text], context + len(text.encode()) + 8)
        return bool((whole[:context] == cut).all() and (whole[context:] == whole[-1]).all())

    @contextlib.contextmanager
    def _autocast(self) -> Iterator[None]:
        import torch

        if self._precision == "fp32":
            yield
            return
        dtype = torch.bfloat16 if self._precision == "bf16" else torch.float16
        with torch.autocast(self.device.type, dtype=dtype):
            yield


def _normalized(features: torch.Tensor) -> npt.NDArray[np.float32]:
    import torch

    vectors = torch.nn.functional.normalize(features.float(), dim=-1)
    return vectors.cpu().numpy()


def _parts(text: str, count: int) -> Iterator[str]:
    """About `count` parts of equal length, cut at a space where one is near."""
    start = 0
    for number in range(1, count + 1):
        end = round(len(text) * number / count)
        if number < count:
            space = text.rfind(" ", start + 1, end + 1)
            end = space if space > start + (end - start) // 2 else end
        if part := text[start:end].strip():
            yield part
        start = end


_loading = threading.Lock()


def shared_model(spec: ModelSpec) -> OpenClipModel:
    """The one copy of a model that this process holds; loaded by whoever asks first."""
    with _loading:
        return _load_once(spec)


@functools.lru_cache(maxsize=1)
def _load_once(spec: ModelSpec) -> OpenClipModel:
    return OpenClipModel(spec)
