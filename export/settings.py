"""What an export was asked for."""

import math
import shlex
from dataclasses import dataclass, field, is_dataclass
from pathlib import Path
from typing import Literal

from restnet_runtime.errors import ExportError
from restnet_runtime.manifest import Precision

from .amp import Amp
from .devices import DeviceName
from .inputs import GivenPreprocessing
from .objectives import Objective
from .planning import CANDIDATES
from .promise import Select
from .rules import Rule, make_rule
from .sampling import RouteSampling


@dataclass(frozen=True)
class TuneSettings:
    """How to tune.

    mode:             what is tuned: the stitching layers, all weights, or low-rank updates of the stitching layers
    steps:            batches of `batch_size` images, each seen by every stitched route (full: by the routes drawn)
    accumulate:       batches per step
    lr:               how far a step may move an output of a stitching layer, in standard deviations of its target
    lr_weights:       how far a step may move an anchor's weight, relative to the root mean square of its tensor (full)
    rank:             of low-rank updates of the stitching layers (lora and full); None is 8 for lora, full rank for full
    objective:        the losses; `features` holds for the first `feature_share` of the steps, then gives way to the others
    checks:           how often weights are judged on the way
    held_out:         share of the images that is not tuned on, above 0
    flip, shift:      mirror half of the images; move them by up to so many pixels
    blend:            blend every image with another one; what the teachers say of the blend is the target, labels cannot be
    stitch_steps:     in full tuning, steps of `stitch` before; 0 for none
    labelled:         weights are judged by the labels; without, by agreement with the teacher
    amp:              precision of what runs for gradients: auto is bf16 or fp16 on a GPU, off elsewhere; bf16 takes 0.6 of the time
                      on a CPU that has it
    sampling, drawn:  which routes, and how many, take part in a step of full tuning
    """

    mode: Literal["stitch", "full", "lora"] = "stitch"
    steps: int = 100
    batch_size: int = 64
    accumulate: int = 1
    lr: float = 0.05
    lr_weights: float = 2e-3
    rank: int | None = None
    objective: Objective = field(default_factory=Objective)
    feature_share: float = 1.0
    checks: int = 5
    held_out: float = 0.2
    flip: bool = False
    shift: int = 0
    blend: bool = False
    stitch_steps: int = 100
    sampling: RouteSampling = "random"
    drawn: int = 2
    labelled: bool = True
    amp: Amp = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        weights = (self.objective.labels, self.objective.soft, self.objective.hard)
        if self.objective.labels and not self.labelled:
            raise ExportError("finetune: a loss of labels where labels are not to be used")
        if self.objective.labels and self.blend:
            raise ExportError("finetune: a loss of labels, which blended images have not: leave out --blend or the loss")
        if not any(weights):
            raise ExportError("finetune: one of the losses labels, soft and hard must have a weight above 0")
        for name, value, fits, allowed in (
            ("steps", self.steps, self.steps >= 1, "at least 1"),
            ("batch_size", self.batch_size, self.batch_size >= 1, "at least 1"),
            ("accumulate", self.accumulate, self.accumulate >= 1, "at least 1"),
            ("lr", self.lr, 0 < self.lr < math.inf, "above 0 and finite"),
            ("lr_weights", self.lr_weights, 0 < self.lr_weights < math.inf, "above 0 and finite"),
            ("rank", self.rank, self.rank is None or self.rank >= 1, "at least 1"),
            ("temperature", self.objective.temperature, 0 < self.objective.temperature < math.inf, "above 0 and finite"),
            ("feature_share", self.feature_share, 0 <= self.feature_share <= 1, "0..1"),
            ("stitch_steps", self.stitch_steps, self.stitch_steps >= 0, "at least 0"),
            ("checks", self.checks, self.checks >= 1, "at least 1"),
            ("held_out", self.held_out, 0 < self.held_out < 1, "above 0 and below 1"),
            ("shift", self.shift, self.shift >= 0, "at least 0"),
            ("drawn", self.drawn, self.drawn >= 1, "at least 1"),
        ):
            if not fits:
                option = {"batch_size": "batch"}.get(name, name.replace("_", "-"))
                raise ExportError(f"finetune: --{option} is {value}, allowed is {allowed}")


@dataclass(frozen=True)
class ExportSettings:
    """What `restnet-export` was asked for.

    anchors:        specs, small to large
    data, val:      data specs: fit and tune on the first, score on the second (default: a held-out part of the first)
    samples:        images behind similarity and least squares, at least 4
    preprocessing:  in place of what the anchors bring
    input_shape:    (channels, height, width), for anchors that do not know theirs or can be built for another
    classes:        class names in the anchors' order; default: those of the data, or the numbers
    stages, kernel, stride, nearest, ends: of the rule; None is the rule's own
    select:         what tells which stitches promise most
    max_routes:     keep so many, the anchors among them
    candidates:     so many stitched routes are made for each that is kept
    match_spread:   stretch what stitching layers answer to the spread of their targets
    stitch_kernel:  side of what a stitching layer sees around each position, odd; 1 where that is not a grid (`StitchingLayer`)
    fold:           stitching layers into the block behind them, where that is exact and cheaper
    teacher:        an anchor by name, "ensemble" for all of them, or a spec of another network; default: the largest anchor that is right
                    about as often as the best
    tuning:         how to fine-tune; `finetune` and `seed` stand in for its mode and seed
    precision:      fp32, and what else every route is to come in
    latency:        measure every route on this machine, for the report; with several precisions that is always done
    device:         where activations, fits, scores and tuning are computed; auto is a GPU where torch has one
    workers:        threads that decode images; the result does not depend on them
    max_bad:        share of the images that may be unreadable and are left out
    resume:         go on with the unfinished run that writes to `out`, if there is one
    checkpoint_minutes: between two states of the run on disk
    sign:           file of the private key that the bundle is signed with, if one is
    command:        what was typed, for the report
    """

    anchors: tuple[str, ...]
    data: str
    out: Path
    val: str | None = None
    rule: Literal["restnet", "sn-net", "both-ways", "all"] = "restnet"
    select: Select = "cka"
    finetune: Literal["none", "stitch", "full", "lora"] = "stitch"
    teacher: str | None = None
    samples: int = 100
    max_routes: int | None = None
    candidates: int = CANDIDATES
    match_spread: bool = True
    stitch_kernel: int = 1
    fold: bool = False
    seed: int = 0
    preprocessing: GivenPreprocessing = field(default_factory=GivenPreprocessing)
    input_shape: tuple[int, int, int] | None = None
    classes: tuple[str, ...] | None = None
    stages: tuple[int, ...] | None = None
    kernel: int | None = None
    stride: int | None = None
    nearest: bool | None = None
    ends: int | None = None
    tuning: TuneSettings = field(default_factory=TuneSettings)
    precision: tuple[Precision, ...] = ("fp32",)
    latency: bool = False
    device: DeviceName = "auto"
    workers: int = 0
    max_bad: float = 0.01
    resume: bool = False
    checkpoint_minutes: float = 5.0
    progress: bool = True
    sign: Path | None = None
    command: tuple[str, ...] = ("restnet-export",)

    def rule_with_options(self) -> Rule:
        """The rule that is asked for. Raises `RuleError` for an option that it has not."""
        options = {name: getattr(self, name) for name in ("stages", "kernel", "stride", "nearest", "ends")}
        return make_rule(self.rule, **{name: value for name, value in options.items() if value is not None})

    def told(self) -> dict[str, object]:
        """As JSON values by name, for whoever wants to repeat the run."""

        def plain(value: object) -> object:
            return {name: plain(part) for name, part in vars(value).items()} if is_dataclass(value) else _json(value)

        left_out = ("progress", "resume", "checkpoint_minutes", "sign", "command")
        told = {name: plain(value) for name, value in vars(self).items() if name not in left_out}
        return {"command": shlex.join(self.command), **told}


def _json(value: object) -> object:
    if isinstance(value, tuple):
        return [_json(part) for part in value]
    return str(value) if isinstance(value, Path) else value
