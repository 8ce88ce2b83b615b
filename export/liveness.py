"""A network as operations in order: what is live after each of them, where it can be cut, and which module each belongs to."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from torch import nn


class Operation(Protocol):
    """One operation of a graph, or its input."""

    @property
    def name(self) -> str:
        """What the graph calls it."""


@dataclass(frozen=True)
class Span:
    """One call of a submodule: the positions in `LiveGraph.nodes` of its first and last operation."""

    module: str
    first: int
    last: int


@dataclass(frozen=True)
class Part:
    """What is known of a submodule.

    kind:        the same for modules of one class; None where the class is not known
    container:   it only holds other modules in a row
    children:    it holds other modules
    matrix:      it, or a module in it, holds a weight matrix or kernel
    own_matrix:  it does itself
    """

    kind: type | str | None
    container: bool
    children: bool
    matrix: bool
    own_matrix: bool


@dataclass(frozen=True)
class LiveGraph(ABC):
    """The operations of a network whose result depends on the image, in order; `entry` is the image.

    `live[i]` is what is still needed after `nodes[i]`, each value by the operation that makes it: one that made two comes twice. `cuts` are
    the positions after which one value alone is live that can be handed over: a float tensor with the batch as its first and only dynamic
    dimension. `spans` are the calls of submodules, in order of their first operation, outer before inner; `parts` says what they are.
    """

    entry: Operation
    nodes: tuple[Operation, ...]
    live: tuple[tuple[Operation, ...], ...]
    cuts: tuple[int, ...]
    spans: tuple[Span, ...]
    parts: Mapping[str, Part]

    @abstractmethod
    def shape(self, position: int) -> tuple[int, ...]:
        """Shape of a cut's tensor without the batch."""

    @abstractmethod
    def segment(self, start: int | None, end: int) -> nn.Module:
        """The operations after cut `start` (None: from the image) up to and with `nodes[end]`: (B, *in) float32 to (B, *out) float32."""

    @abstractmethod
    def has_weights(self, start: int | None, end: int) -> bool:
        """Whether the operations between two cuts use a weight matrix or kernel."""
