"""Changes to images: mirrored, moved by a few pixels, which keep their label where the user says so; blended, which keep none."""

import torch
from torch import Tensor
from torch.nn import functional


def augmented(images: Tensor, flip: bool, shift: int, generator: torch.Generator) -> Tensor:
    """Images (B, C, H, W), half of them mirrored left to right, each moved by up to `shift` pixels; the border repeats."""
    if flip:
        chosen = torch.rand(len(images), generator=generator) < 0.5
        images = torch.where(chosen.view(-1, 1, 1, 1).to(images.device), images.flip(-1), images)
    if shift:
        height, width = images.shape[-2:]
        padded = functional.pad(images, (shift,) * 4, mode="replicate")
        corners = torch.randint(2 * shift + 1, (len(images), 2), generator=generator).tolist()
        images = torch.stack(
            [image[:, top : top + height, left : left + width] for image, (top, left) in zip(padded, corners, strict=True)]
        )
    return images


def blended(images: Tensor, generator: torch.Generator) -> Tensor:
    """Images (B, C, H, W), each blended with another of the batch, by shares that are drawn evenly from 0..1 (mixup, Zhang et al. 2018).

    What a teacher says of a blend is as good a target as what it says of an image, and there are many more of them (function matching,
    Beyer et al. 2022): for distillation on few images.
    """
    shares = torch.rand(len(images), generator=generator).view(-1, 1, 1, 1).to(images)
    return torch.lerp(images, images[torch.randperm(len(images), generator=generator)], shares)
