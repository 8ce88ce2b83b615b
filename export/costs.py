"""What segments cost: multiply-accumulates and trained numbers."""

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from .devices import device_of
from .graph_costs import graph_macs, graph_params
from .onnx_module import OnnxModule


def count_macs(module: nn.Module, input_shape: tuple[int, ...]) -> int:
    """Multiply-accumulates of matrix products, convolutions and attention for one input, by torch's own FLOP counter.

    Published figures (fvcore's) also count normalisation, two per number for batches and five for layers, and pooling. At 224 x 224 this
    gives DeiT-Ti 1.254 G (published: 1.26), DeiT-S 4.599 (4.61), Swin-Ti 4.491 (4.51), ResNet-18 1.814 (1.82), ResNet-50 4.089 (4.11).
    """
    if isinstance(module, OnnxModule):
        return graph_macs(module.model)
    # The counter does not know the fused attention of the CPU; MATH is the same as two matrix products.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        module(torch.zeros(1, *input_shape, device=device_of(module)))
    return int(counter.get_total_flops()) // 2  # it counts a multiply-accumulate as two


def count_params(module: nn.Module) -> int:
    """Trained numbers of a module, each once. Of one from an ONNX file the numbers in its weights: what was folded is gone."""
    if isinstance(module, OnnxModule):
        return graph_params(module.model)
    return sum(parameter.numel() for parameter in module.parameters())
