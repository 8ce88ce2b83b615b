"""What tuning leaves alone: modules in eval mode, and gradients for the chosen parameters only."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import nn


@contextmanager
def frozen(modules: Sequence[nn.Module], tuned: Sequence[nn.Parameter]) -> Iterator[None]:
    """Eval mode, and gradients for `tuned` alone; both put back at the end."""
    modes = {part: part.training for module in modules for part in module.modules()}
    flags = {parameter: parameter.requires_grad for module in modules for parameter in module.parameters()}
    chosen = set(tuned)
    try:
        for part in modes:
            part.training = False
        for parameter in flags:
            parameter.requires_grad_(parameter in chosen)
        yield
    finally:
        for part, mode in modes.items():
            part.training = mode
        for parameter, flag in flags.items():
            parameter.requires_grad_(flag)
            parameter.grad = None
