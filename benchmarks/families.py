"""Bundles that benchmarks measure: published architectures with random weights, because speed and memory do not depend on the weights.

Made once under build/benchmarks. Images are noise; accuracies in these bundles mean nothing.
"""

import argparse
from typing import TYPE_CHECKING, Any

from common import CACHE, REPOSITORY, ROOT

from restnet_runtime.bundle import Bundle, open_bundle
from restnet_runtime.errors import BundleError

if TYPE_CHECKING:
    from restnet_runtime.cache import CompiledRoute
    from restnet_runtime.routes import Route

DIGITS = "digits"
"""The bundle that ships."""
FAMILIES = {
    "resnet18-50": (("resnet18", "resnet50"), (1, 2), 224),
    "resnet18-50-32px": (("resnet18", "resnet50"), (1, 2), 32),
    "resnet18-50-96px": (("resnet18", "resnet50"), (1, 2), 96),
    "deit-ti-s": (("deit_tiny_patch16_224", "deit_small_patch16_224"), None, 224),
    "mobilenetv2": (("mobilenetv2_050", "mobilenetv2_100"), None, 224),
    "deit-ti-s-b": (("deit_tiny_patch16_224", "deit_small_patch16_224", "deit_base_patch16_224"), None, 224),
}
"""Anchors, the stages that SN-Net stitches, and the side of the input. 32 pixels are what CIFAR has: few positions, all the weights."""
QUICK = ("resnet18-50", "deit-ti-s")
"""What is measured unless somebody asks for more: the largest family takes two minutes to make."""


def family(name: str, *, int8: bool = False) -> Bundle:
    """The bundle of `FAMILIES[name]`, made now if it is not there; or `DIGITS`.

    int8: another one, of the anchors and the two routes that promise most, each in fp32 and in int8
    """
    if name == DIGITS:
        return open_bundle(REPOSITORY / "restnet_runtime" / "bundles" / "digits")
    out = ROOT / (f"{name}-int8" if int8 else name)
    try:
        return open_bundle(out)
    except BundleError:
        pass
    # Here, so that a benchmark whose bundle is there stays without torch.
    import numpy as np

    from restnet_export.pipeline import export_bundle
    from restnet_export.settings import ExportSettings

    complete_torchvision()
    anchors, stages, side = FAMILIES[name]
    ROOT.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for part in ("fit", "score"):
        np.savez(ROOT / f"{part}.npz", x=rng.integers(0, 256, (8, 224, 224, 3), dtype=np.uint8), y=np.arange(8))
    settings = ExportSettings(
        anchors=tuple(f"timm:{anchor}@random" for anchor in anchors),
        data=f"npz:{ROOT / 'fit.npz'}",
        val=f"npz:{ROOT / 'score.npz'}",
        out=out,
        rule="sn-net",
        input_shape=(3, side, side),
        stages=stages,
        finetune="none",
        samples=8,
        precision=("fp32", "int8") if int8 else ("fp32",),
        max_routes=len(anchors) + 2 if int8 else None,
    )
    return export_bundle(settings, print)


def complete_torchvision() -> None:
    """torchvision does not import beside a CPU build of torch of another version; these benchmarks use none of its operators."""
    import torch

    if not hasattr(torch.ops.torchvision, "nms"):
        library = torch.library.Library("torchvision", "FRAGMENT")
        library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _KEPT.append(library)  # its definitions end with it


_KEPT: list[Any] = []


def add_route_options(parser: argparse.ArgumentParser, name: str, route: str) -> None:
    """`--family`, `--route`, `--threads` and `--rounds` of a benchmark that looks at one route. name, route: the defaults."""
    parser.add_argument("--family", choices=sorted(FAMILIES), default=name)
    parser.add_argument("--route", default=route)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=20)


def compiled_route(args: argparse.Namespace) -> "tuple[Bundle, Route, CompiledRoute]":
    """What these options name, compiled."""
    from restnet_runtime.compile import Compiler  # here: others measure processes that do without

    bundle = family(args.family)
    route = bundle.route(args.route)
    return bundle, route, Compiler.for_bundle(bundle, CACHE).compile(route)
