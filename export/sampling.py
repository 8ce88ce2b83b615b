"""Which images and which routes a tuning step sees, from one random generator whose state can be saved."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from restnet_runtime.errors import ExportError

from .devices import on_device
from .routes import StitchedRoute
from .samples import Samples

RouteSampling = Literal["random", "sandwich", "binned"]

HELD_OUT_MOST = 512
"""More images than these are not held out: a check costs a pass of every route over them."""
MAX_WEIGHT = 8.0
"""How much more often than others a route is drawn at most."""


class LabelledImages(Protocol):
    """What a torch `Dataset` of (image, class index) offers."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> tuple[Tensor, int | Tensor]: ...


class ImageOrder:
    """Endless batches of indices, reshuffled whenever all images are through; the last batch of a round may be smaller."""

    def __init__(self, indices: Sequence[int], batch_size: int, generator: torch.Generator) -> None:
        self._indices, self._batch_size, self._generator = list(indices), batch_size, generator
        self._waiting: list[int] = []

    def next(self) -> list[int]:
        if not self._waiting:
            self._waiting = [self._indices[position] for position in torch.randperm(len(self._indices), generator=self._generator).tolist()]
        batch, self._waiting = self._waiting[: self._batch_size], self._waiting[self._batch_size :]
        return batch

    @property
    def following(self) -> list[int]:
        """The batch that comes next, as far as it is settled: nothing at the end of a round."""
        return self._waiting[: self._batch_size]

    def state_dict(self) -> dict[str, Any]:
        """What is left of this round. The generator is saved by whoever owns it."""
        return {"waiting": list(self._waiting)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._waiting = list(state["waiting"])


class RouteSampler:
    """Which routes take part in a step of full tuning.

    random:    `count` routes (SN-Net draws one)
    sandwich:  the cheapest, the dearest, and `count` others (Yu & Huang, Universally Slimmable Networks, 2019)
    binned:    `count` routes, each from a stretch of cost of its own, so that every stretch is tuned alike wherever the routes lie
               (after SN-Netv2's resource-constrained sampling)

    Drawing is weighted: a route of weight 2 comes twice as often as one of weight 1.
    """

    def __init__(self, macs: Mapping[int, int], kind: RouteSampling, count: int, generator: torch.Generator) -> None:
        """macs: by index of the route."""
        self._kind, self._generator = kind, generator
        self._count = min(count, len(macs))
        self._ordered = sorted(macs, key=lambda index: (macs[index], index))
        self._macs = dict(macs)
        self.weights = dict.fromkeys(self._ordered, 1.0)

    def favour(self, route: int) -> None:
        """Draw a route twice as often from now on."""
        if route in self.weights:
            self.weights[route] = min(2 * self.weights[route], MAX_WEIGHT)

    def draw(self) -> list[int]:
        """Indices of routes, each once, in ascending order; none where there are none."""
        if not self._ordered:
            return []
        if self._kind == "binned":
            return sorted({self._one_of(members) for members in self._bins()})
        chosen = {self._ordered[0], self._ordered[-1]} if self._kind == "sandwich" else set()
        wanted = min(self._count + len(chosen), len(self._macs))
        while len(chosen) < wanted:
            chosen.add(self._one_of([index for index in self._ordered if index not in chosen]))
        return sorted(chosen)

    def _bins(self) -> list[list[int]]:
        """The range of costs in `count` equal stretches; those without a route are left out."""
        low, high = self._macs[self._ordered[0]], self._macs[self._ordered[-1]]
        bins: dict[int, list[int]] = {}
        for index in self._ordered:
            bins.setdefault(min((self._macs[index] - low) * self._count // max(high - low, 1), self._count - 1), []).append(index)
        return list(bins.values())

    def _one_of(self, members: Sequence[int]) -> int:
        weights = torch.tensor([self.weights[index] for index in members])
        return members[int(torch.multinomial(weights, 1, generator=self._generator))]

    def state_dict(self) -> dict[str, Any]:
        return {"weights": dict(self.weights)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.weights = dict(state["weights"])


def constant_and_drawn(routes: Sequence[StitchedRoute]) -> tuple[list[int], list[int]]:
    """Stitched routes that take part in every step, and the others: of the routes through a layer, those with the fewest layers do."""
    fewest: dict[str, int] = {}
    for route in routes:
        for name in route.layers:
            fewest[name] = min(fewest.get(name, len(route.layers)), len(route.layers))
    stitched = [index for index, route in enumerate(routes) if route.layers]
    first = [index for index in stitched if any(fewest[name] == len(routes[index].layers) for name in routes[index].layers)]
    return first, [index for index in stitched if index not in first]


def split_of(count: int, held_out: float, generator: torch.Generator, fitted: int = 0) -> tuple[list[int], list[int]]:
    """Indices that are held out, and those to tune on, shuffled.

    fitted: layers were fitted on the first so many images, where they look better than they are: the others are held out as far as they go
    """
    order = torch.randperm(count, generator=generator).tolist()
    split = min(math.ceil(held_out * count), HELD_OUT_MOST)
    if split >= count:
        raise ExportError(f"finetune: {count} images leave none to tune on with {held_out:.0%} held out")
    order.sort(key=lambda index: index < fitted)  # stable: both parts stay shuffled
    return order[:split], order[split:]


def batches_of(indices: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    """The indices in order, `size` at a time; the last batch may be smaller."""
    for start in range(0, len(indices), size):
        yield indices[start : start + size]


def batch_of(data: LabelledImages, indices: Sequence[int], device: torch.device, following: Sequence[int] = ()) -> tuple[Tensor, Tensor]:
    """Images (B, C, H, W) and labels int64 (B,) on `device`. following: the images that come next, which may be prepared meanwhile."""
    if isinstance(data, Samples):
        images, labels = data.drawn_with_next(indices, following)
    else:
        items = [data[index] for index in indices]
        images, labels = torch.stack([image for image, _ in items]), torch.tensor([int(label) for _, label in items])
    return on_device(images, device), on_device(labels, device)


def drawn_from(data: LabelledImages, draws: Iterable[Sequence[int]], device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """The batch of each of `draws` on `device`, prepared ahead where the data can."""
    if not isinstance(data, Samples):
        return (batch_of(data, indices, device) for indices in draws)
    return ((on_device(images, device), on_device(labels, device)) for images, labels in data.drawn(draws))
