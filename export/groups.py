"""Weights that are tuned and taken together: a stitching layer or, in full tuning, everything."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .amp import Precision
from .coordinates import LayerCoordinates

PATIENCE = 2
"""Checks in a row that bring nothing before the best weights come back and steps get half as long."""
MAX_ROLLBACKS = 3
"""So often, then the group is done."""
LEAST_SCALE = 1e-2
"""Of a tensor, however small its values are: biases that begin at 0 can be tuned too."""
MAX_NORM = 1.0
"""Of the gradient of a group, in the coordinates that it is tuned in."""


class Group:
    """Coordinates of layers and weights of anchors with one optimiser, one step size, and the best values so far.

    routes:    indices of the routes that run through it, by which it is judged
    improved:  something better than the start has been kept
    """

    def __init__(
        self, routes: Sequence[int], layers: Mapping[str, LayerCoordinates], weights: Sequence[nn.Parameter], lr: float, lr_weights: float
    ) -> None:
        self.routes, self.layers, self._weights = tuple(routes), dict(layers), list(weights)
        self._sizes = [size for layer in self.layers.values() for size in layer.step_sizes(lr)]
        self._sizes += [lr_weights * max(float(weight.detach().square().mean().sqrt()), LEAST_SCALE) for weight in self._weights]
        self._optimiser = self._new_optimiser()
        self._scale, self._strikes, self._rollbacks = 1.0, 0, 0
        self.improved = False
        self._kept = self.values()

    @property
    def parameters(self) -> list[nn.Parameter]:
        """What the optimiser steps on."""
        return [parameter for layer in self.layers.values() for parameter in layer.parameters] + self._weights

    @property
    def trained(self) -> list[nn.Parameter]:
        """What needs a gradient when routes run: the layers' own parameters, and the weights."""
        return [parameter for layer in self.layers.values() for parameter in layer.layer.parameters()] + self._weights

    @property
    def done(self) -> bool:
        return self._rollbacks >= MAX_ROLLBACKS

    def step(self, share: float, precision: Precision) -> None:
        """One step with the gradients that were gathered; `share` of the full step size (0..1) is the schedule's."""
        for layer in self.layers.values():
            layer.pull()
        parameters: list[Tensor] = [*self.parameters]
        if all(parameter.grad is None for parameter in parameters):
            return
        precision.unscale(self._optimiser)
        torch.nn.utils.clip_grad_norm_(parameters, MAX_NORM)
        before = [parameter.detach().clone() for parameter in parameters]
        precision.step(self._optimiser)  # of size 1
        # All tensors at once, as torch's own optimisers do it; torch has no public way, and one by one a GPU spends its time on launches.
        with torch.no_grad():
            torch._foreach_sub_(parameters, before)
            torch._foreach_mul_(parameters, [size * share * self._scale for size in self._sizes])
            torch._foreach_add_(parameters, before)
        self._optimiser.zero_grad(set_to_none=True)
        self._push()

    def keep(self) -> None:
        """The present values are the best so far."""
        self._kept, self._strikes, self.improved = self.values(), 0, True

    def dismiss(self) -> None:
        """The present values bring nothing: after `PATIENCE` times the best come back, and steps get half as long."""
        self._strikes += 1
        if self._strikes >= PATIENCE:
            self.restore()
            self._optimiser = self._new_optimiser()
            self._scale, self._strikes, self._rollbacks = self._scale / 2, 0, self._rollbacks + 1

    def restore(self) -> None:
        """Put the best values in place."""
        self.load(self._kept)

    def blend(self) -> None:
        """Put the mean of the best and the present values in place."""
        self.load([(best + value) / 2 for best, value in zip(self._kept, self.values(), strict=True)])

    def values(self) -> list[Tensor]:
        return [parameter.detach().clone() for parameter in self.parameters]

    def load(self, values: Sequence[Tensor]) -> None:
        with torch.no_grad():
            for parameter, value in zip(self.parameters, values, strict=True):
                parameter.copy_(value)
        self._push()

    def state_dict(self) -> dict[str, Any]:
        return {
            "values": self.values(),
            "kept": self._kept,
            "optimiser": self._optimiser.state_dict(),
            "improved": self.improved,
            "scale": self._scale,
            "strikes": self._strikes,
            "rollbacks": self._rollbacks,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.load(state["values"])
        self._kept = [value.to(parameter, copy=True) for parameter, value in zip(self.parameters, state["kept"], strict=True)]
        self._optimiser.load_state_dict(dict(state["optimiser"]))
        self.improved = state["improved"]
        self._scale, self._strikes, self._rollbacks = state["scale"], state["strikes"], state["rollbacks"]

    def _new_optimiser(self) -> torch.optim.Adam:
        """All tensors in one, which a GPU steps on at once; `step` scales what comes of it, as every tensor has a size of its own."""
        return torch.optim.Adam(self.parameters, lr=1.0, betas=(0.9, 0.99))

    def _push(self) -> None:
        for layer in self.layers.values():
            layer.push()
