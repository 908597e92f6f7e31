"""Train the demo model: a small CLIP that knows drawings.

    python demo/pictures.py --work=FOLDER
    python demo/train.py --work=FOLDER

writes FOLDER/checkpoint.pt every few minutes and goes on from it when started again. Another
process augments while this one trains. The defaults are the numbers the shipped model was trained
with; its model card gives the machine and the time. Being stopped and started again draws other
random numbers, so a run repeats in its figures, not bit by bit.
"""

from __future__ import annotations

import argparse
import math
import os
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import open_clip
import torch
import torch.multiprocessing as mp
import torch.nn.functional as F
from captions import TEMPLATES, read_catalogue
from development import Development
from examples import Examples, fill_forever, read_examples, tokenise
from open_clip.model import CLIP
from torch import Tensor

MODEL: dict[str, Any] = {
    "embed_dim": 128,
    "vision_cfg": {"image_size": 64, "layers": [2, 3, 3, 1], "width": 16, "head_width": 32},
    "text_cfg": {"context_length": 20, "vocab_size": 49408, "width": 48, "heads": 4, "layers": 2},
}
"""The shipped architecture, in open_clip's words."""
NAME_SHARE = 0.6
"""Weight of the loss on name captions; the rest is on tags and category nouns."""
MEAN = torch.tensor(open_clip.OPENAI_DATASET_MEAN).view(1, 3, 1, 1) * 255
STD = torch.tensor(open_clip.OPENAI_DATASET_STD).view(1, 3, 1, 1) * 255
_SLOTS = 6


def build(vocabulary: int) -> CLIP:
    """Build the shipped architecture with a token table of `vocabulary` rows."""
    model = CLIP(**MODEL | {"text_cfg": MODEL["text_cfg"] | {"vocab_size": vocabulary}})
    model.to(memory_format=torch.channels_last)
    return model


def contrast(logits: Tensor, truth: Tensor, images: Tensor, texts: Tensor) -> Tensor:
    """InfoNCE over the pairs (`images`[k], `texts`[k]), both ways, blind to other true pairs.

    `logits` and `truth` are [images, texts]. A pair competes only with pairs that are false:
    "animal" beside another animal is no mistake to learn from.
    """
    false = logits.masked_fill(truth, -torch.inf)
    pair = logits[images, texts]
    of_image = torch.logaddexp(false.logsumexp(1)[images], pair) - pair
    of_text = torch.logaddexp(false.logsumexp(0)[texts], pair) - pair
    return (of_image.mean() + of_text.mean()) / 2


def learning_rate(step: int, args: argparse.Namespace) -> float:
    """Warm up, hold, then fall to zero along a line."""
    rising = (step + 1) / args.warmup
    falling = (args.steps - step) / (args.steps - args.decay_from)
    return float(args.lr * max(0.0, min(1.0, rising, falling)))


@dataclass
class Training:
    """What stays the same from the first step to the last."""

    args: argparse.Namespace
    examples: Examples
    truth: Tensor
    tokens: Tensor
    vocabulary: Tensor
    development: Development
    stopping: list[int] = field(default_factory=list)

    @property
    def checkpoint(self) -> Path:
        """Where the state of the training is kept."""
        return Path(self.args.work / "checkpoint.pt")

    def loss(self, model: CLIP, pictures: Tensor, labels: Tensor) -> Tensor:
        """Compute the loss of a batch: uint8[B, 3, side, side], int64[3, B] of `fill_forever`."""
        concepts, names, tags = labels
        image = ((pictures.float() - MEAN) / STD).contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):
            image = model.visual(image)
        image = F.normalize(image.float(), dim=-1)
        # Each phrase is encoded once, in one template drawn for it.
        phrases, position = torch.unique(torch.cat([names, tags]), return_inverse=True)
        template = torch.randint(len(TEMPLATES), (len(phrases),))
        text = model.encode_text(self.tokens[phrases, template], normalize=True)
        logits = model.logit_scale.exp() * image @ text.T
        truth, order = self.truth[concepts][:, phrases], torch.arange(len(concepts))
        by_name = contrast(logits, truth, order, position[: len(order)])
        by_tag = contrast(logits, truth, order, position[len(order) :])
        return NAME_SHARE * by_name + (1 - NAME_SHARE) * by_tag


def optimiser_of(model: CLIP, args: argparse.Namespace) -> torch.optim.AdamW:
    """Make AdamW with weight decay on matrices and kernels only."""
    named = list(model.named_parameters())
    plain = [p for name, p in named if p.ndim < 2 or "embedding" in name]
    decayed = [p for name, p in named if p.ndim >= 2 and "embedding" not in name]
    groups = [
        {"params": decayed, "weight_decay": args.weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=args.lr, betas=(0.9, 0.98), fused=True)


def run(training: Training) -> None:
    """Train from the checkpoint, where there is one, to the last step or until stopped."""
    args = training.args
    model, average = (build(len(training.vocabulary)) for _ in range(2))
    average.load_state_dict(model.state_dict())
    optimiser = optimiser_of(model, args)
    step, seconds = 0, 0.0
    if training.checkpoint.exists():
        saved = torch.load(training.checkpoint)
        step, seconds = saved["step"], saved["seconds"]
        model.load_state_dict(saved["model"])
        average.load_state_dict(saved["average"])
        optimiser.load_state_dict(saved["optimiser"])
    print(f"from step {step} to {args.steps}", flush=True)

    mp.set_start_method("spawn", force=True)
    side = MODEL["vision_cfg"]["image_size"]
    shape = (_SLOTS, args.batch, 3, side, side)
    pictures = torch.empty(shape, dtype=torch.uint8).share_memory_()  # type: ignore[no-untyped-call]
    labels = torch.empty(_SLOTS, 3, args.batch, dtype=torch.int64).share_memory_()  # type: ignore[no-untyped-call]
    free: mp.Queue[int] = mp.Queue()
    full: mp.Queue[int] = mp.Queue()
    for slot in range(_SLOTS):
        free.put(slot)
    helper = mp.Process(
        target=fill_forever,
        args=(args.seed + step, args.work, pictures, labels, free, full),
        daemon=True,
    )
    helper.start()
    (args.work / "train.pid").write_text(f"{os.getpid()}\n{helper.pid}\n")

    began = logged = time.monotonic()

    def save() -> None:
        partial = training.checkpoint.with_suffix(".partial")
        state = {
            "model": model.state_dict(),
            "average": average.state_dict(),
            "optimiser": optimiser.state_dict(),
            "vocabulary": training.vocabulary,
            "step": step,
            "seconds": seconds + time.monotonic() - began,
        }
        torch.save(state, partial)
        partial.replace(training.checkpoint)
        found = training.development.measure(average, MEAN, STD, side)
        print(f"{time.strftime('%H:%M:%S')} step {step} development: {found}", flush=True)

    losses: list[float] = []
    model.train()
    while step < args.steps and not training.stopping:
        slot = full.get()
        loss = training.loss(model, pictures[slot], labels[slot].clone())
        free.put(slot)
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(step, args)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0, foreach=True)
        optimiser.step()
        step += 1
        with torch.no_grad():
            model.logit_scale.clamp_(0, math.log(100))
            keep = min(args.ema, (step + 1) / (step + 10))
            torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - keep)
            for mine, theirs in zip(average.buffers(), model.buffers(), strict=True):
                mine.copy_(theirs)
        losses.append(loss.item())
        if step % 200 == 0:
            now = time.monotonic()
            print(
                f"{time.strftime('%H:%M:%S')} step {step} loss {sum(losses) / len(losses):.3f} "
                f"lr {learning_rate(step, args):.5f} scale {model.logit_scale.exp().item():.1f} "
                f"images/s {len(losses) * args.batch / (now - logged):.0f}",
                flush=True,
            )
            if step % 1000 == 0:
                save()
            logged, losses = time.monotonic(), []
    save()
    helper.terminate()
    helper.join()


def main() -> None:
    """Train to the last step, or until told to stop (SIGTERM); leave a checkpoint either way."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="folder for all work files")
    parser.add_argument("--decay_from", type=int, default=10000, help="step")
    parser.add_argument("--steps", type=int, default=15000)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--weight_decay", type=float, default=0.05)
    parser.add_argument("--warmup", type=int, default=600, help="steps")
    parser.add_argument("--ema", type=float, default=0.998)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    torch.set_flush_denormal(True)
    examples = read_examples(args.work, read_catalogue(args.work / "packages"))
    context_length = MODEL["text_cfg"]["context_length"]
    tokens, vocabulary = tokenise(examples.phrases, context_length)
    print(
        f"{sum(map(len, examples.rows))} drawings, {len(examples.concepts)} concepts, "
        f"{len(examples.phrases)} phrases, {len(vocabulary)} tokens",
        flush=True,
    )
    training = Training(
        args=args,
        examples=examples,
        truth=examples.truth(),
        tokens=tokens,
        vocabulary=vocabulary,
        development=Development(args.work, vocabulary, context_length),
    )

    def stop(signal_number: int, _frame: FrameType | None) -> None:
        training.stopping.append(signal_number)

    signal.signal(signal.SIGTERM, stop)
    run(training)


if __name__ == "__main__":
    main()
