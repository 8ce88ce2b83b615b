"""Mirrored and moved images."""

import torch

from restnet_export.augment import augmented, blended


def images(count: int = 64) -> torch.Tensor:
    return torch.arange(count * 2 * 4 * 6, dtype=torch.float32).view(count, 2, 4, 6)


def test_nothing_asked_nothing_done() -> None:
    x = images()
    assert augmented(x, False, 0, torch.Generator()) is x


def test_about_half_are_mirrored() -> None:
    x = images()
    y = augmented(x, True, 0, torch.Generator().manual_seed(0))
    mirrored = [torch.equal(b, a.flip(-1)) for a, b in zip(x, y, strict=True)]
    kept = [torch.equal(b, a) for a, b in zip(x, y, strict=True)]
    assert all(a != b for a, b in zip(mirrored, kept, strict=True))
    assert 16 < sum(mirrored) < 48


def test_shifts_keep_the_shape_and_most_of_the_image() -> None:
    x = images()
    y = augmented(x, False, 1, torch.Generator().manual_seed(0))
    assert y.shape == x.shape
    moves = set()
    for a, b in zip(x, y, strict=True):
        found = [
            (down, right)
            for down in (-1, 0, 1)
            for right in (-1, 0, 1)
            if torch.equal(b[:, 1:3, 1:5], a[:, 1 + down : 3 + down, 1 + right : 5 + right])
        ]
        assert len(found) == 1
        moves.add(found[0])
    assert len(moves) == 9


def test_blends_lie_between_two_images_of_the_batch() -> None:
    x = images()
    y = blended(x, torch.Generator().manual_seed(0))
    assert y.shape == x.shape
    shares = torch.rand(len(x), generator=torch.Generator().manual_seed(0))
    assert shares.min() < 0.1
    assert shares.max() > 0.9
    moved = (y - x).flatten(1)
    others = x.mean((1, 2, 3))
    for index, share in enumerate(shares):
        assert torch.allclose(moved[index], moved[index, :1].expand(48), rtol=1e-4, atol=1e-2)  # these images differ by a constant
        partner = others[index] + moved[index, 0] / share
        assert (others - partner).abs().min() < 0.1
    assert torch.equal(y, blended(x, torch.Generator().manual_seed(0)))
