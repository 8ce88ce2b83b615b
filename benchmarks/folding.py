"""What folding stitching layers into the blocks behind them would save, and cost in bytes, at every default cut of two networks.

    python benchmarks/folding.py [--json FILE]

Random weights, input of 64 pixels, fronts of three quarters of the end's channels. Folded is only what takes no more multiply-accumulates
than the layer and the block apart; every fold is compared with the two modules apart.
"""

import argparse
import time
from dataclasses import replace

import torch
from common import Result, arguments, publish
from families import complete_torchvision

from restnet_export.anchors import AnchorSpec, load_anchor
from restnet_export.costs import count_macs
from restnet_export.cuts import cut_anchor
from restnet_export.folding import fold
from restnet_export.stitching import StitchingLayer

ENDS = ("mobilenetv2_100", "vgg11_bn")
PIXELS = 64


def folds(name: str) -> tuple[int, list[dict[str, float]]]:
    """How many cuts an end has a block behind, and of each fold that saves: MACs folded over apart, copied numbers over the layer's own,
    and the largest relative difference."""
    end = cut_anchor(load_anchor(AnchorSpec.parse(f"timm:{name}@random"), (3, PIXELS, PIXELS)))
    found = []
    torch.manual_seed(0)
    for cut, layout in enumerate(end.layouts):
        layer = StitchingLayer(replace(layout, channels=max(1, 3 * layout.channels // 4)), layout)
        torch.nn.init.normal_(layer.weight)
        torch.nn.init.normal_(layer.bias)
        block = end.blocks[cut + 1]
        folded = fold(layer, block)
        if folded is None:
            continue
        shape = layer.source.shape
        apart = count_macs(layer, shape) + count_macs(block, layout.shape)
        together = count_macs(folded, shape)
        if together > apart:
            continue
        shared = {id(weight) for weight in block.parameters()}
        copied = sum(weight.numel() for weight in folded.parameters() if id(weight) not in shared)
        with torch.no_grad():
            x = torch.randn(2, *shape)
            expected, answer = block(layer(x)), folded(x)
        found.append(
            {
                "macs": together / apart,
                "copied": copied / sum(weight.numel() for weight in layer.parameters()),
                "difference": float((answer - expected).abs().max() / expected.abs().max()),
            }
        )
    return len(end.cuts), found


def main() -> None:
    args: argparse.Namespace = arguments(__doc__ or "").parse_args()
    started = time.monotonic()
    complete_torchvision()
    result = Result(
        f"Stitching layers folded into the block behind them, fronts of 3/4 of the channels, {PIXELS} pixels",
        ("end", "cuts with a foldable block behind", "MACs folded over apart", "copied numbers over the layer's own", "largest difference"),
    )
    for name in ENDS:
        cuts, found = folds(name)
        spans = [f"{min(item[key] for item in found):.2f} to {max(item[key] for item in found):.2f}" for key in ("macs", "copied")]
        result.rows.append({"end": name, "cuts": cuts, "folds": found})
        result.cells.append((name, f"{len(found)} of {cuts}", *spans, f"{max(item['difference'] for item in found):.0e}"))
    publish(result, args, started)


if __name__ == "__main__":
    main()
