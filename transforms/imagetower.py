"""ImageTower: pixels to vectors as fast as the device goes; torch, no Beam.

What it decides: the precision of the weights, their layout in memory, whether they are compiled,
how many pictures are computed at a time, and how pixels get to the device.
"""

from __future__ import annotations

import copy
import logging
import resource
import sys
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from transforms.batchsizes import BatchSize
from transforms.records import ModelSpec, Precision, Preprocess

if TYPE_CHECKING:
    import torch

MEASURED = 16
"""Pictures that precisions are compared on."""

WORTH = 1.2
"""How much faster a lower precision has to be than the one before it, for `auto` to take it."""

COMPILED_SIZE = {"cpu": 32, "cuda": 256}
"""A compiled tower is of one size: here the default one."""

_OUT_OF_MEMORY = "can't allocate memory"
"""What torch says of the memory of processors, without an exception of its own for it."""

Pixels = npt.NDArray[np.uint8]
Vectors = npt.NDArray[np.float32]

logger = logging.getLogger("beamtag")


class PrecisionError(Exception):
    """A precision that this device does not have."""


class ImageTower:
    """The image tower of an open_clip model, which it takes for itself, on the model's device.

    `precision` is the one in force; `warm_up_seconds` what choosing it and compiling have taken.
    """

    def __init__(
        self, model: Any, spec: ModelSpec, preprocess: Preprocess, device: torch.device
    ) -> None:
        """Make the tower ready. Raises `PrecisionError`."""
        import torch

        self.device = device
        self._model = model
        shape = (1, 3, 1, 1)
        self._size = preprocess.size
        self._mean = torch.tensor(preprocess.mean, device=device).reshape(shape)
        self._std = torch.tensor(preprocess.std, device=device).reshape(shape)
        stream: Any = torch.cuda.Stream
        self._copying = stream(device) if device.type == "cuda" else None
        self._padded = False
        size = spec.batch_size
        if spec.compiled:
            size = size or COMPILED_SIZE[device.type]
        self.batch_size = BatchSize(size)
        started = time.perf_counter()
        self.precision = self._lower(spec.precision)
        if spec.compiled:
            self._compile()
        self.warm_up_seconds = time.perf_counter() - started

    def encode(self, pixels: Pixels) -> Vectors:
        """L2-normalised `float32[B, D]` vectors of `uint8[B, H, W, 3]` pixels.

        Pixels cross to the device as bytes and are scaled to 0..1 and normalised there. What does
        not fit into memory is tried in parts of half the size, from then on too.
        """
        parts = [
            self._encode_fitting(pixels[start:end], size)
            for start, end, size in self.batch_size.parts(len(pixels))
        ]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _encode_fitting(self, pixels: Pixels, size: int) -> Vectors:
        while True:
            started = time.perf_counter()
            try:
                vectors = self._encode(pixels, size)
            except RuntimeError as error:
                if not is_out_of_memory(error) or not self.batch_size.halve(size):
                    raise
                # What the failed try had is free again only once its error is forgotten.
                said = str(error).partition("\n")[0]
            else:
                seconds = time.perf_counter() - started
                self.batch_size.timed(len(pixels), seconds, self._memory_share)
                return vectors
            size = self.batch_size.value
            logger.warning("the model sees %d pictures at a time from here on: %s", size, said)
            if self.device.type == "cuda":
                import torch

                torch.cuda.empty_cache()

    def _encode(self, pixels: Pixels, size: int) -> Vectors:
        """All of them, `size` at a time; on a GPU the next are copied while some are computed."""
        import torch

        with torch.inference_mode():
            parts = [
                self._vectors(self._copied(pixels[start : start + size]), size)
                for start in range(0, len(pixels), size)
            ]
            together = parts[0] if len(parts) == 1 else torch.cat(parts)
            return together.cpu().numpy()

    def _copied(self, pixels: Pixels) -> torch.Tensor:
        import torch

        host = torch.from_numpy(pixels)
        if self._copying is None:
            return host
        with torch.cuda.stream(self._copying):
            copied = host.to(self.device, non_blocking=True)
        computing = torch.cuda.current_stream(self.device)
        computing.wait_stream(self._copying)
        copied.record_stream(computing)
        return copied

    def _vectors(self, pixels: torch.Tensor, size: int) -> torch.Tensor:
        import torch

        count = len(pixels)
        # A view in channels-last order: what convolutions like, and no copy.
        images = pixels.permute(0, 3, 1, 2).float().div_(255).sub_(self._mean).div_(self._std)
        if self._padded and count < size:
            images = torch.cat([images, images.new_zeros(size - count, *images.shape[1:])])
        features = self._model.encode_image(images.to(self._dtype))[:count]
        return torch.nn.functional.normalize(features.float(), dim=-1)

    @property
    def _dtype(self) -> torch.dtype:
        return _dtype_of(self.precision)

    def _lower(self, precision: Precision) -> Precision:
        """Put the tower into a precision, and give it: of `auto` the one that was found."""
        import torch

        on_cuda = self.device.type == "cuda"
        if precision == "int8" and on_cuda:
            raise PrecisionError("--precision=int8 is for processors; a GPU has bf16 and fp16")
        if precision == "auto" and on_cuda:
            # Of what a GPU does in hardware neither is slower than the other.
            precision = "bf16" if torch.cuda.is_bf16_supported(False) else "fp16"
        elif precision == "auto":
            precision = self._fastest()
        tower = self._model.visual
        if _is_convolutional(tower):
            # The norms come first, while both are in fp32.
            tower = _folded(tower).to(memory_format=torch.channels_last)
        self._model.visual = lowered(tower, precision)
        if precision == "int8":
            self.precision = precision
            if said := self._refused():
                raise PrecisionError(f"--precision=int8 is not for this model's images: {said}")
        return precision

    def _refused(self) -> str | None:
        """Why the tower cannot embed a picture as it is now; None if it can.

        Some read the weights of their own linear layers, which int8 ones do not have.
        """
        try:
            self._encode(np.zeros((1, *self._size, 3), np.uint8), 1)
        # Whatever a tower does with what is not there.
        except Exception as error:
            return str(error).partition("\n")[0]
        return None

    def _fastest(self) -> Precision:
        """What this processor is fastest with, measured on pictures of noise."""
        pixels = np.random.default_rng(0).integers(0, 256, (MEASURED, *self._size, 3), np.uint8)
        exact = self._model.visual
        seconds: dict[Precision, float] = {}
        chosen: Precision = "fp32"
        try:
            for precision in ("fp32", "bf16", "int8"):
                self._model.visual = lowered(copy.deepcopy(exact), precision)
                self.precision = precision
                if self._refused():
                    continue
                times = []
                for _ in range(3):
                    started = time.perf_counter()
                    self._encode(pixels, MEASURED)
                    times.append(time.perf_counter() - started)
                seconds[precision] = min(times)
                if seconds[precision] * WORTH <= seconds[chosen]:
                    chosen = precision
        finally:
            self._model.visual = exact
        said = ", ".join(f"{name} {MEASURED / spent:.0f}/s" for name, spent in seconds.items())
        logger.info("precision: auto chose %s (%s)", chosen, said)
        return chosen

    def _compile(self) -> None:
        import torch

        # On a GPU this makes CUDA graphs too: nothing is launched kernel by kernel.
        mode = "reduce-overhead" if self.device.type == "cuda" else None
        self._model.visual = torch.compile(self._model.visual, mode=mode)
        self._padded = True
        size = self.batch_size.value
        for _ in range(3):  # The graphs are recorded in the runs after the first.
            self._encode(np.zeros((size, *self._size, 3), np.uint8), size)

    def _memory_share(self) -> float:
        """Of the device's memory, or of this machine's, the share that was in use at most."""
        import torch

        if self.device.type == "cuda":
            _, total = torch.cuda.mem_get_info(self.device)
            return torch.cuda.max_memory_reserved(self.device) / total
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / memory_of_machine()


def lowered(tower: Any, precision: Precision) -> Any:
    """An image tower with its weights in a precision; it is changed, not copied.

    `int8` are the weights of its linear layers; what goes into these is brought to 8 bits as it
    comes (dynamic quantisation), all else stays fp32.
    """
    import torch

    if precision == "int8":
        with warnings.catch_warnings():
            # torch means to move it to a package that needs a compiler where it runs.
            warnings.simplefilter("ignore")
            quantize: Any = torch.ao.quantization.quantize_dynamic
            return quantize(tower, {torch.nn.Linear}, torch.qint8, inplace=True)
    return tower.to(_dtype_of(precision))


def _dtype_of(precision: Precision) -> torch.dtype:
    """What the weights of a precision are, and what goes into them; of int8 what is not linear."""
    import torch

    return {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision, torch.float32)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether torch had too little memory for something, of the device or of the machine."""
    import torch

    return isinstance(error, torch.OutOfMemoryError) or _OUT_OF_MEMORY in str(error)


class DeviceClock:
    """What the model takes of this thread from here on."""

    def __init__(self) -> None:
        self._started, self._own = time.perf_counter(), time.thread_time()

    def spent(self) -> tuple[float, float | None]:
        """Seconds, and those of them that were the processor's; None where a GPU is at work."""
        on_gpu = _uses_gpu()
        seconds = time.perf_counter() - self._started
        return seconds, None if on_gpu else time.thread_time() - self._own


def _uses_gpu() -> bool:
    """Whether a model of this process is on a GPU."""
    torch = sys.modules.get("torch")
    return torch is not None and hasattr(torch, "cuda") and bool(torch.cuda.is_initialized())


def pixel_memory(shape: tuple[int, ...]) -> Pixels:
    """Memory for pixels; where a model is on a GPU, such as it can be copied from at full speed."""
    if _uses_gpu():
        import torch

        pinned: Pixels = torch.empty(shape, dtype=torch.uint8, pin_memory=True).numpy()
        return pinned
    return np.empty(shape, np.uint8)


def memory_of_machine() -> int:
    """Bytes that this machine has, or that its control group lets it have."""
    pages = Path("/proc/meminfo").read_text().split()
    total = int(pages[1]) * 1024
    limit = Path("/sys/fs/cgroup/memory.max")
    allowed = limit.read_text().strip() if limit.exists() else "max"
    return total if allowed == "max" else min(total, int(allowed))


def _folded(tower: Any) -> Any:
    """The tower, an open_clip ResNet's batch norms folded into the convolutions before them.

    Of a trained norm there is a scale and an offset for each channel, which a convolution has too.
    """
    import torch
    from open_clip.modified_resnet import ModifiedResNet
    from torch.nn.utils.fusion import fuse_conv_bn_eval

    if not isinstance(tower, ModifiedResNet):
        return tower
    for block in tower.modules():
        parts = dict(block.named_children())
        # conv1 and bn1 of a block or of the stem; 0 and 1 of what a shortcut is brought down by.
        norms = {name: name.replace("conv", "bn") for name in parts if name.startswith("conv")}
        for conv, norm in {**norms, "0": "1"}.items():
            pair = parts.get(conv), parts.get(norm)
            if isinstance(pair[0], torch.nn.Conv2d) and isinstance(pair[1], torch.nn.BatchNorm2d):
                block.add_module(conv, fuse_conv_bn_eval(pair[0], pair[1]))
                block.add_module(norm, torch.nn.Identity())
    return tower


def _is_convolutional(tower: Any) -> bool:
    """Whether it has more convolutions than the one that cuts a picture into patches."""
    import torch

    return sum(isinstance(module, torch.nn.Conv2d) for module in tower.modules()) > 1
