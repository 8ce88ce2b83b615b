"""Activations: what an anchor computes at each of its cuts, one batch at a time and without gradients."""

from collections.abc import Iterator

import torch
from torch import Tensor

from restnet_runtime.errors import ExportError

from .cuts import CutAnchor


def cut_activations(anchor: CutAnchor, images: Tensor, *, finite: bool = True) -> list[Tensor]:
    """The output of every block but the head, in order.

    images: float32 (B, *anchor.input_shape).
    Returns one tensor per cut, (B, *cut.shape), all of them held at once: the batch size bounds the memory.
    Raises `ExportError` for images of another shape and, unless `finite` is off, where a block answers with something that is not finite.
    """
    return list(each_activation(anchor, images, finite=finite))


def each_activation(anchor: CutAnchor, images: Tensor, *, finite: bool = True) -> Iterator[Tensor]:
    """The same one by one, so that no more than two of them are held."""
    if tuple(images.shape[1:]) != tuple(anchor.input_shape):
        raise ExportError(
            f"{anchor.name} takes images of shape (batch, {', '.join(map(str, anchor.input_shape))}), not {tuple(images.shape)}"
        )
    x = images
    for block, cut in zip(anchor.blocks[:-1], anchor.cuts, strict=True):
        with torch.no_grad():  # not around `yield`, where it would hold for the caller too
            x = block(x)
            if finite and not bool(torch.isfinite(torch.stack(x.aminmax())).all()):  # a NaN is both, and no tensor of the size of x is made
                raise ExportError(f"{anchor.name}: what it computes up to {cut.module} is not finite for some of the images")
        yield x
