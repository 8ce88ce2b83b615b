"""Changes to images that keep their label: mirrored, moved by a few pixels. Whether they do is for the user to say."""

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
