"""Fine-tuning of a family: which network teaches, which phases there are, and what is said on the way.

`stitch` tunes the stitching layers and leaves the anchors as they are, bit for bit (ReStNet). `lora` is the same with low-rank updates
of the fitted layers. `full` begins with `stitch`, then tunes all weights, a few routes drawn per step (SN-Net), every anchor taught by
its own frozen original. What comes of it is judged on images that are not tuned on, and no route and no anchor is left below its start.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from torch import nn
from tqdm.auto import tqdm

from .costs import count_macs
from .cuts import CutAnchor
from .routes import StitchedRoute, block_name
from .sampling import LabelledImages
from .settings import TuneSettings
from .stitching import StitchingLayer
from .tuner import Tuned, Tuner


def finetune(
    anchors: Mapping[str, CutAnchor],
    layers: Mapping[str, StitchingLayer],
    routes: Sequence[StitchedRoute],
    teacher: str | nn.Module,
    data: LabelledImages,
    settings: TuneSettings,
    say: Callable[[str], None],
    progress: bool = True,
) -> list[Tuned]:
    """Tune the family in place. Returns what became of every route that was tuned, against its start before the first phase.

    Raises `ExportError` where no route has a stitching layer, or too few images remain to tune on.
    """
    macs = route_macs(anchors, layers, routes)
    phases = [settings]
    if settings.mode == "full" and settings.stitch_steps:
        phases.insert(0, replace(settings, mode="stitch", steps=settings.stitch_steps))
    results: dict[str, Tuned] = {}
    for phase in phases:
        tuner = Tuner(anchors, layers, routes, macs, teacher, data, phase)
        for item in run(tuner, phase.steps, progress):
            first = results.get(item.route, item)
            results[item.route] = replace(
                item,
                accuracy_before=first.accuracy_before,
                loss_before=first.loss_before,
                improved=item.improved or first.improved,
            )
        say(f"fine-tuning, {phase.mode}: {_told(list(results.values()))}")
    return list(results.values())


def run(tuner: Tuner, steps: int, progress: bool) -> list[Tuned]:
    """Run a tuner to its end, or until interrupted: then too the best weights so far are in place."""
    with tuner, tqdm(total=steps, desc="fine-tuning", unit="step", disable=not progress) as bar:
        while not tuner.done:
            loss = tuner.step()
            bar.update()
            bar.set_postfix(loss=f"{loss:.3f}")
    return tuner.results()


def route_macs(anchors: Mapping[str, CutAnchor], layers: Mapping[str, StitchingLayer], routes: Sequence[StitchedRoute]) -> list[int]:
    """Multiply-accumulates of every route."""
    macs = {name: count_macs(layer, layer.source.shape) for name, layer in layers.items()}
    for name, anchor in anchors.items():
        for block, (module, shape) in enumerate(zip(anchor.blocks, (anchor.input_shape, *(cut.shape for cut in anchor.cuts)), strict=True)):
            macs[block_name(name, block)] = count_macs(module, shape)
    return [sum(macs[name] for name in route.segments()) for route in routes]


def _told(results: Sequence[Tuned]) -> str:
    gains = sorted(item.accuracy_after - item.accuracy_before for item in results)
    better = sum(item.improved for item in results)
    return f"{better} of {len(results)} routes improved on held-out images, by {100 * gains[len(gains) // 2]:.1f} points in the median"
