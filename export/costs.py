"""What segments cost: multiply-accumulates and trained numbers."""

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode


def count_macs(module: nn.Module, input_shape: tuple[int, ...]) -> int:
    """Multiply-accumulates of matrix products, convolutions and attention for one input, by torch's own FLOP counter."""
    # The counter does not know the fused attention of the CPU; MATH is the same as two matrix products.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        module(torch.zeros(1, *input_shape))
    return int(counter.get_total_flops()) // 2  # it counts a multiply-accumulate as two


def count_params(module: nn.Module) -> int:
    """Trained numbers of a module, each once."""
    return sum(parameter.numel() for parameter in module.parameters())
