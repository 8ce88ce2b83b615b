"""Fine-tuning of a family: which network teaches, which phases there are, and what is said on the way.

`stitch` tunes the stitching layers and leaves the anchors as they are, bit for bit (ReStNet). `lora` is the same with low-rank updates
of the fitted layers. `full` begins with `stitch`, then tunes all weights, a few routes drawn per step (SN-Net), every anchor taught by
its own frozen original. What comes of it is judged on images that are not tuned on, and no route and no anchor is left below its start.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, replace
from typing import Any

from torch import nn
from tqdm.auto import tqdm

from restnet_runtime.errors import ExportError

from .cuts import CutAnchor
from .guard import Score
from .interrupts import Stop, stopping
from .ranks import Ranks
from .routes import StitchedRoute
from .runs import Run
from .sampling import LabelledImages
from .settings import TuneSettings
from .stitching import StitchingLayer
from .tuner import Tuned, Tuner


def finetune(
    anchors: Mapping[str, CutAnchor],
    layers: Mapping[str, StitchingLayer],
    routes: Sequence[StitchedRoute],
    macs: Sequence[int],
    teacher: str | nn.Module,
    data: LabelledImages,
    settings: TuneSettings,
    say: Callable[[str], None],
    progress: bool = True,
    run: Run | None = None,
    ranks: Ranks | None = None,
    fitted: int = 0,
) -> list[Tuned]:
    """Tune the family in place. Returns what became of every route that was tuned, against its start before the first phase.

    macs:   of each route
    run:    where the state is kept now and then, and gone on from; with it the first Ctrl-C stops tuning, and the best so far stays
    ranks:  processes that tune together
    fitted: the layers were fitted on the first so many of `data`: they are held out last
    Raises `ExportError` where no route has a stitching layer, or too few images remain to tune on.
    """
    ranks = ranks or Ranks()
    ranks.take_from_first([parameter for layer in layers.values() for parameter in layer.parameters()])
    phases = _phases(settings)
    state: Mapping[str, Any] = (run.state if run is not None else None) or {"phase": 0, "results": []}
    done = state["tuner"]["steps_done"] if "tuner" in state else 0
    ranks.check_same({"the state to go on from": f"step {done} of phase {state['phase']}"})  # others may not see the first one's disk
    results = {item["route"]: Tuned(**{**item, "curve": tuple(map(tuple, item["curve"]))}) for item in state["results"]}
    if "layers" in state:
        for name, values in state["layers"].items():
            layers[name].load_state_dict(values)
    starts: Mapping[int, Score] = {}
    with stopping() if run is not None and ranks.size == 1 else nullcontext(Stop()) as stop:
        for index, phase in enumerate(phases):
            if index < state["phase"] or stop:
                continue
            began = {
                "phase": index,
                "results": [asdict(item) for item in results.values()],
                "layers": {name: {key: value.clone() for key, value in layer.state_dict().items()} for name, layer in layers.items()},
            }
            tuner = Tuner(anchors, layers, routes, macs, teacher, data, phase, ranks, fitted=fitted, starts=starts)
            if index == state["phase"] and "tuner" in state:
                tuner.load_state_dict(state["tuner"])
                say(f"going on after step {tuner.steps_done} of {phase.steps} of {phase.mode}")
            _run_phase(tuner, phase.steps, progress, stop, _saver(run if ranks.first else None, began, tuner, say))
            starts = tuner.starts
            before = sum(earlier.steps for earlier in phases[:index])
            for item in tuner.results():
                first = results.get(item.route, replace(item, curve=()))
                results[item.route] = replace(
                    item,
                    accuracy_before=first.accuracy_before,
                    loss_before=first.loss_before,
                    improved=item.improved or first.improved,
                    curve=(*first.curve, *((before + step, loss) for step, loss in item.curve)),
                )
            stopped = f" stopped after step {tuner.steps_done} of {phase.steps}" if stop else ""
            say(f"fine-tuning, {phase.mode}{stopped}: {_told(list(results.values()))}")
    return list(results.values())


def _phases(settings: TuneSettings) -> list[TuneSettings]:
    if settings.mode == "full" and settings.stitch_steps:
        return [replace(settings, mode="stitch", steps=settings.stitch_steps), settings]
    return [settings]


def _saver(run: Run | None, began: Mapping[str, Any], tuner: Tuner, say: Callable[[str], None]) -> Callable[[bool], None]:
    """What is called after every step: saves the state when it is time, or now where it must (`True`)."""

    def save(must: bool) -> None:
        if run is None or not (must or run.due):
            return
        try:
            run.save({**began, "tuner": tuner.state_dict()})
        except ExportError as error:  # a full disk may have room again; what is tuned must not be lost for it
            say(f"{error}; tuning goes on")

    return save


def _run_phase(tuner: Tuner, steps: int, progress: bool, stop: Stop, save: Callable[[bool], None]) -> None:
    """Run a tuner to its end, or until it is stopped or interrupted: then too the best weights so far are in place."""
    seconds = 0.1 if sys.stderr.isatty() else 10.0  # a log keeps every line
    bar = tqdm(total=steps, initial=tuner.steps_done, desc="fine-tuning", unit="step", disable=not progress, mininterval=seconds)
    with tuner, bar:
        while not tuner.done and not stop:
            loss = tuner.step()
            save(False)
            bar.set_postfix_str(f"loss {loss:.3f}{_best(tuner.results())}", refresh=False)
            bar.update()
        save(True)
        if stop and tuner.steps_done:  # a check that a run which goes on from the state does not make: nothing is saved after it
            tuner.judge()


def _best(results: Sequence[Tuned]) -> str:
    """The stitched route that is most accurate on the held-out images so far, for the line of progress."""
    stitched = [item for item in results if ">" in item.route]
    if not stitched:
        return ""
    best = max(stitched, key=lambda item: item.accuracy_after)
    return f", best {best.route} {100 * best.accuracy_after:.1f} %, {sum(item.improved for item in results)} of {len(results)} better"


def _told(results: Sequence[Tuned]) -> str:
    if not results:
        return "stopped before the first step"
    gains = sorted(item.accuracy_after - item.accuracy_before for item in results)
    better = sum(item.improved for item in results)
    return f"{better} of {len(results)} routes improved on held-out images, by {100 * gains[len(gains) // 2]:.1f} points in the median"
