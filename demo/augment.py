"""Batches of augmented drawings: what makes a small tower see shapes rather than one artist's hand.

All functions take and give float32 in [0, 1] of shape [N, C, side, side] unless they say otherwise.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from torchvision.io import decode_jpeg, encode_jpeg


def chosen(count: int, share: float) -> Tensor:
    """Draw the indices of a random `share` of `count` items."""
    return (torch.rand(count) < share).nonzero()[:, 0]


def uniform(count: int, low: float, high: float) -> Tensor:
    """Draw `count` numbers between `low` and `high`, shape [N, 1, 1, 1]."""
    return torch.rand(count, 1, 1, 1) * (high - low) + low


def augment(pixels: NDArray[np.uint8], mono: Tensor, may_flip: Tensor, side: int) -> Tensor:
    """Place drawings, uint8[N, 96, 96, 4], on backgrounds: uint8[N, 3, side, side].

    `mono` (bool[N]) marks drawings of one colour, which get a random one; `may_flip` (bool[N])
    those that mean the same when mirrored.
    """
    drawings = torch.from_numpy(pixels).permute(0, 3, 1, 2).float().div_(255)
    drawings[:, :3] *= drawings[:, 3:]
    placed = _place(drawings, may_flip, side)
    colour, alpha = placed[:, :3], placed[:, 3:].clamp(0, 1)
    _tint(colour, alpha, mono)
    _outline(colour, alpha, chosen(len(colour), 0.25))
    colour = _recolour(colour, alpha)
    pictures = colour + (1 - alpha) * _backgrounds(len(colour), mono, side)
    return _degrade(pictures)


def _place(drawings: Tensor, may_flip: Tensor, side: int) -> Tensor:
    """Scale, rotate, shear, mirror and shift; premultiplied RGBA to [N, 4, side, side]."""
    count = len(drawings)
    scale = torch.empty(count).uniform_(0.5, 1.15)
    upright = torch.rand(count) < 0.3
    scale = torch.where(upright, torch.empty(count).uniform_(0.85, 1.02), scale)
    angle = torch.randn(count) * 0.15
    angle = torch.where(torch.rand(count) < 0.08, torch.empty(count).uniform_(-0.8, 0.8), angle)
    angle = torch.where(upright, angle * 0.1, angle)
    mirror = torch.where((torch.rand(count) < 0.5) & may_flip, -1.0, 1.0)
    aspect = torch.exp(torch.randn(count) * 0.08)
    shear = torch.randn(count) * 0.06
    cosine, sine = torch.cos(angle) / scale, torch.sin(angle) / scale
    affine = torch.zeros(count, 2, 3)
    affine[:, 0, 0] = cosine * mirror * aspect
    affine[:, 0, 1] = (sine + shear) * aspect
    affine[:, 1, 0] = -sine * mirror / aspect
    affine[:, 1, 1] = cosine / aspect
    room = (1 - scale).clamp(min=0.08) / scale
    affine[:, :, 2] = (torch.rand(count, 2) * 2 - 1) * room[:, None]
    grid = F.affine_grid(affine, [count, 4, side, side], align_corners=False)
    out = torch.empty(count, 4, side, side)
    # Bilinear sampling does not filter, so small copies are taken from a halved drawing.
    small = scale * side < 0.55 * drawings.shape[-1]
    for part, halve in ((small, True), (~small, False)):
        index = part.nonzero()[:, 0]
        if len(index):
            source = drawings[index]
            source = F.avg_pool2d(source, 2) if halve else source
            out[index] = F.grid_sample(source, grid[index], align_corners=False)
    return out


def _tint(colour: Tensor, alpha: Tensor, mono: Tensor) -> None:
    """Give drawings of one colour a random one, dark half of the time; in place."""
    index = mono.nonzero()[:, 0]
    shade = torch.rand(len(index), 3, 1, 1) * torch.where(
        torch.rand(len(index), 1, 1, 1) < 0.5, 0.15, 0.8
    )
    colour[index] = alpha[index] * shade


def _outline(colour: Tensor, alpha: Tensor, index: Tensor) -> None:
    """Draw dark lines round the silhouette and along inner edges, on paler fills; in place."""
    if not len(index):
        return
    fill, cover = colour[index], alpha[index]
    around = F.max_pool2d(cover, 3, 1, 1) + F.max_pool2d(-cover, 3, 1, 1)
    grey = fill.mean(1, keepdim=True)
    inner = F.max_pool2d(grey, 3, 1, 1) + F.max_pool2d(-grey, 3, 1, 1)
    inner = (inner * uniform(len(index), 1.0, 3.5) - 0.2).clamp(0, 1)
    lines = torch.maximum(around.clamp(0, 1), inner)
    pale = uniform(len(index), -0.6, 0.9).clamp(min=0)
    fill = fill + (cover - fill) * pale
    ink = torch.rand(len(index), 3, 1, 1) * 0.25
    covered = torch.maximum(cover, around)
    colour[index] = fill * (1 - lines) + ink * lines * covered
    alpha[index] = covered


def _recolour(colour: Tensor, alpha: Tensor) -> Tensor:
    """Shift colours; flatten some, turn the hue of some, take the colour from some."""
    count = len(colour)
    mix = torch.eye(3).expand(count, 3, 3).clone()
    mix += torch.randn(count, 3, 3) * 0.08 * (torch.rand(count, 1, 1) < 0.6)
    turned = chosen(count, 0.08)
    mix[turned] = torch.eye(3)[torch.rand(len(turned), 3).argsort(1)]
    grey = chosen(count, 0.06)
    mix[grey] = 1 / 3
    colour = torch.einsum("nij,njhw->nihw", mix, colour)
    flat = chosen(count, 0.1)
    levels = uniform(len(flat), 2.5, 6)
    colour[flat] = torch.round(colour[flat] * levels) / levels
    return torch.minimum(colour.clamp(0, 1), alpha)


def _backgrounds(count: int, mono: Tensor, side: int) -> Tensor:
    """White, near-white, one colour, a gradient, clouds or near-black."""
    kind = torch.multinomial(torch.tensor([0.36, 0.08, 0.18, 0.15, 0.16, 0.07]), count, True)
    # A drawing of one dark colour would vanish on the dark ones.
    kind = torch.where(mono & (kind > 2), 0, kind)
    out = torch.ones(count, 3, side, side)
    index = (kind == 1).nonzero()[:, 0]
    out[index] = 1 - torch.rand(len(index), 3, 1, 1) * 0.15
    index = (kind == 2).nonzero()[:, 0]
    low = torch.where(mono[index], 0.75, 0.0)[:, None, None, None]
    out[index] = low + torch.rand(len(index), 3, 1, 1) * (1 - low)
    for which, mode, cells, spread in ((3, "bilinear", 2, 1.0), (4, "bicubic", 5, 0.8)):
        index = (kind == which).nonzero()[:, 0]
        if len(index):
            noise = torch.rand(len(index), 3, cells, cells)
            base = torch.rand(len(index), 3, 1, 1)
            spots = F.interpolate(noise, (side, side), mode=mode, align_corners=False)
            out[index] = spots if which == 3 else (base + (spots - 0.5) * spread).clamp(0, 1)
    index = (kind == 5).nonzero()[:, 0]
    out[index] = torch.rand(len(index), 3, 1, 1) * 0.2
    return out


def _degrade(pictures: Tensor) -> Tensor:
    """Contrast, brightness, inversion, blur, noise and JPEG, each for some; to uint8."""
    count = len(pictures)
    some = (torch.rand(count, 1, 1, 1) < 0.5).float()
    pictures = pictures * (1 + some * uniform(count, -0.25, 0.25)) + some * uniform(
        count, -0.1, 0.1
    )
    index = chosen(count, 0.02)
    pictures[index] = 1 - pictures[index]
    index = chosen(count, 0.15)
    pictures[index] = F.avg_pool2d(F.pad(pictures[index], (1, 1, 1, 1), mode="replicate"), 3, 1)
    index = chosen(count, 0.15)
    noise = torch.randn_like(pictures[index])
    pictures[index] += noise * uniform(len(index), 0, 0.08)
    out = pictures.clamp_(0, 1).mul_(255).to(torch.uint8)
    for i in chosen(count, 0.06).tolist():
        quality = int(torch.randint(25, 80, ()))
        out[i] = decode_jpeg(encode_jpeg(out[i], quality=quality))
    return out
