"""Bundles that benchmarks measure: published architectures with random weights, because speed and memory do not depend on the weights.

Made once under build/benchmarks. Images are noise; accuracies in these bundles mean nothing.
"""

from typing import Any

from common import REPOSITORY, ROOT

from restnet_runtime.bundle import Bundle, open_bundle
from restnet_runtime.errors import BundleError

DIGITS = "digits"
"""The bundle that ships."""
FAMILIES = {
    "resnet18-50": (("resnet18", "resnet50"), (1, 2), 224),
    "resnet18-50-32px": (("resnet18", "resnet50"), (1, 2), 32),
    "deit-ti-s": (("deit_tiny_patch16_224", "deit_small_patch16_224"), None, 224),
    "deit-ti-s-b": (("deit_tiny_patch16_224", "deit_small_patch16_224", "deit_base_patch16_224"), None, 224),
}
"""Anchors, the stages that SN-Net stitches, and the side of the input. 32 pixels are what CIFAR has: few positions, all the weights."""
QUICK = ("resnet18-50", "deit-ti-s")
"""What is measured unless somebody asks for more: the largest family takes two minutes to make."""


def family(name: str) -> Bundle:
    """The bundle of `FAMILIES[name]`, made now if it is not there; or `DIGITS`."""
    if name == DIGITS:
        return open_bundle(REPOSITORY / "restnet_runtime" / "bundles" / "digits")
    out = ROOT / name
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
