"""Images to fit, tune and score on, by number: where their pixels come from, their labels, parts of them."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from restnet_runtime.errors import SpecError

UNLABELLED = -1
"""The label of an image whose class nobody told. Good for what needs none: similarity, least squares, distillation."""


@dataclass(frozen=True)
class Images:
    """Images, decoded when they are asked for.

    labels:    (N,) int64, all of them `UNLABELLED` where the data has none
    classes:   names by label, where the data has them
    source:    file, encoded bytes or uint8 pixels (H, W, C) of image i; raises `OSError` where they cannot be had
    encoded:   are there images that have yet to be decoded, and may turn out damaged?
    positions: (N,) the number of image i in the data as it was read; None: i
    """

    name: str
    labels: np.ndarray
    classes: tuple[str, ...] | None
    source: Callable[[int], Path | bytes | np.ndarray]
    encoded: bool = False
    positions: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def has_labels(self) -> bool:
        return not len(self) or bool(self.labels[0] != UNLABELLED)

    def which(self, index: int) -> str:
        """What a message calls image `index`: its file, or its number in the data as it was read."""
        try:
            item = self.source(index)
        except OSError:
            item = b""
        return str(item) if isinstance(item, Path) else f"image {index if self.positions is None else self.positions[index]}"

    def subset(self, indices: np.ndarray) -> "Images":
        """The images at `indices`, in that order."""
        source = self.source
        positions = indices if self.positions is None else self.positions[indices]
        return replace(self, labels=self.labels[indices], source=lambda index: source(int(indices[index])), positions=positions)

    def first(self, count: int) -> "Images":
        """The first `count` images, or all where there are fewer."""
        return self.subset(np.arange(min(count, len(self))))

    def shuffled(self, seed: int) -> "Images":
        """The same images in an order that depends on `seed` alone."""
        return self.subset(np.random.default_rng(seed).permutation(len(self)))

    def labelled(self, classes: tuple[str, ...]) -> "Images":
        """The same images with labels that index `classes`; images without names of their own are labelled so already.

        Raises `SpecError` if they have names and these are others.
        """
        if self.classes is None or self.classes == classes:
            return self
        if sorted(self.classes) != sorted(classes):
            odd = sorted(set(self.classes) ^ set(classes))
            raise SpecError(
                f"the classes of {self.name!r} are not those given: {', '.join(odd[:5])}{', ...' if len(odd) > 5 else ''} "
                f"{'is' if len(odd) == 1 else 'are'} on one side only"
            )
        if not self.has_labels:
            return replace(self, classes=classes)
        labels = np.array([classes.index(name) for name in self.classes], np.int64)[self.labels]
        return replace(self, labels=labels, classes=classes)

    def split(self, share: float, seed: int) -> tuple["Images", "Images"]:
        """(rest, held out): `share` of each class is held out, at least one image of every class that has two."""
        rng = np.random.default_rng(seed)
        held: list[np.ndarray] = []
        for label in np.unique(self.labels):
            members = rng.permutation(np.flatnonzero(self.labels == label))
            held.append(members[: max(1, round(share * len(members)))] if len(members) > 1 else members[:0])
        out = np.sort(np.concatenate(held))
        return self.subset(np.setdiff1d(np.arange(len(self)), out)), self.subset(out)
