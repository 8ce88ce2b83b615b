"""The command line of `restnet-export` as settings."""

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from restnet_runtime.errors import SpecError
from restnet_runtime.manifest import Precision
from restnet_runtime.threads import usable_cores

from .inputs import GivenPreprocessing
from .objectives import Objective
from .rules import RULES, needs_promise, options_of
from .settings import ExportSettings, TuneSettings

_OF_FULL = ("lr_weights", "stitch_steps", "sampling", "drawn")
_OF_TUNING = ("steps", "batch_size", "accumulate", "lr", "held_out", "flip", "shift", "blend", "amp", "rank", *_OF_FULL)
_OF_OBJECTIVE = ("labels", "soft", "hard", "features")


def settings_of(args: argparse.Namespace, progress: bool) -> ExportSettings:
    """What the command line asks for. Raises `SpecError` for what cannot be or would do nothing, `ExportError` for values out of range."""
    mean, std, input_shape = _input(args.input, args.mean, args.std)
    return ExportSettings(
        anchors=tuple(args.anchors),
        data=args.data,
        val=args.val,
        out=args.out,
        rule=args.rule,
        finetune=args.finetune,
        teacher=args.teacher,
        tuning=_tuning(args),
        samples=args.samples,
        max_routes=_most_routes(args),
        match_spread=args.match_spread,
        stitch_kernel=_odd(args.stitch_kernel, "--stitch-kernel"),
        fold=args.fold,
        seed=_at_least(args.seed, 0, "--seed"),
        preprocessing=GivenPreprocessing(mean, std, args.resize, args.interpolation, _crop_pct(args.crop_pct)),
        input_shape=input_shape,
        classes=_classes(args.classes),
        precision=_precisions(args.precision),
        latency=args.latency,
        device=args.device,
        workers=usable_cores() if args.workers is None else _at_least(args.workers, 0, "--workers"),
        max_bad=_share(args.max_bad, "--max-bad"),
        resume=args.resume,
        checkpoint_minutes=_minutes(args.checkpoint_minutes),
        progress=progress,
        sign=args.sign,
        **_of_choices(args),
    )


def _odd(value: int, option: str) -> int:
    if value < 1 or value % 2 == 0:
        raise SpecError(f"{option} {value}: an odd number, 1 or more, is what has a middle")
    return value


def _most_routes(args: argparse.Namespace) -> int | None:
    limit: int | None = args.max_routes
    if limit is not None and limit < len(args.anchors):
        raise SpecError(f"--max-routes {limit} must be at least {len(args.anchors)}: the anchors are among them and always kept")
    return limit


def _precisions(given: Sequence[str]) -> tuple[Precision, ...]:
    """fp32 first. Raises `SpecError` without it: the others are made of it and judged by it; and for half precisions."""
    halves = sorted({*given} - {"fp32", "int8"})
    if halves:
        raise SpecError(
            f"--precision {' '.join(given)}: {' and '.join(halves)} cannot be written: ONNX Runtime's CPU provider, by which routes are "
            "scored, has no kernels for it, so nothing could be said of such a route; give fp32 int8"
        )
    if "fp32" not in given:
        raise SpecError(f"--precision {' '.join(given)}: fp32 is always among them; give --precision fp32 {' '.join(given)}")
    return ("fp32", "int8") if "int8" in given else ("fp32",)


def _of_choices(args: argparse.Namespace) -> dict[str, Any]:
    """The options that belong to one rule, as far as given. Raises `SpecError` if they would do nothing."""
    given = {
        name: value for name in ("kernel", "stride", "stages", "nearest", "ends", "select") if (value := getattr(args, name)) is not None
    }
    for name in given:
        if name != "select" and name not in options_of(args.rule):
            having = " or ".join(rule for rule in RULES if name in options_of(rule))
            raise SpecError(f"--{name} does nothing with --rule {args.rule}: leave it out, or give --rule {having}")
        if name == "select" and not needs_promise(args.rule) and args.max_routes is None:
            raise SpecError(f"--select does nothing with --rule {args.rule} and no limit: leave it out, or give --max-routes")
    if "stages" in given:
        given["stages"] = tuple(given["stages"])
    return given


def _tuning(args: argparse.Namespace) -> TuneSettings:
    """Raises `SpecError` for options that would do nothing with this way of tuning, `ExportError` for values out of range."""
    given = _given(args, _OF_TUNING)
    mode = args.finetune
    idle = (
        [*given, *_given(args, ("teacher", "ignore_labels", "loss", "temperature"))]
        if mode == "none"
        else [name for name in given if name in _OF_FULL and mode != "full"]
    )
    if mode == "stitch" and "rank" in given:
        idle.append("rank")
    if idle:
        option = {"batch_size": "batch"}.get(idle[0], idle[0].replace("_", "-"))
        raise SpecError(f"--{option} does nothing with --finetune {mode}: leave it out")
    if mode == "none":
        return TuneSettings(seed=args.seed)
    weights = dict(loss_weight(text) for text in args.loss or ())
    if args.temperature is not None:
        weights["temperature"] = args.temperature
    return TuneSettings(mode=mode, seed=args.seed, labelled=not args.ignore_labels, objective=Objective(**weights), **given)


def _given(args: argparse.Namespace, names: Sequence[str]) -> dict[str, Any]:
    return {name: value for name in names if (value := getattr(args, name)) is not None}


def loss_weight(text: str) -> tuple[str, float]:
    name, _, weight = text.partition("=")
    try:
        value = float(weight)
    except ValueError:
        value = -1.0
    if name not in _OF_OBJECTIVE or not 0 <= value < math.inf:
        raise SpecError(f"--loss {text!r}: give NAME=WEIGHT, NAME one of {', '.join(_OF_OBJECTIVE)}, WEIGHT at least 0")
    return name, value


def _input(
    size: list[int] | None, mean: list[float] | None, std: list[float] | None
) -> tuple[tuple[float, ...] | None, tuple[float, ...] | None, tuple[int, int, int] | None]:
    """Mean, deviation and (channels, height, width), as far as given: all, or --input alone, or none."""
    if (mean is None) != (std is None) or (mean is not None and size is None):
        raise SpecError("--mean and --std go together and need --input")
    if size is None:
        return None, None, None
    if len(size) > 2 or min(size) < 1:
        raise SpecError(f"--input {' '.join(map(str, size))}: give height and width, or one number for both")
    if mean is None or std is None:
        return None, None, (3, size[0], size[-1])
    if len(mean) != len(std) or len(mean) not in (1, 3) or min(std) <= 0 or not all(map(math.isfinite, [*mean, *std])):
        raise SpecError(f"--mean {mean} --std {std}: give one number each (grey) or three (RGB), deviations above 0")
    return tuple(mean), tuple(std), (len(mean), size[0], size[-1])


def _classes(path: Path | None) -> tuple[str, ...] | None:
    if path is None:
        return None
    try:
        names = tuple(line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip())
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(f"--classes {path} cannot be read: {error}") from error
    if not names or len(set(names)) != len(names):
        raise SpecError(f"--classes {path} has {len(names)} names, {len(set(names))} of them different: give each class its own")
    return names


def _crop_pct(value: float | None) -> float | None:
    if value is not None and not 0 < value <= 1:
        raise SpecError(f"--crop-pct {value} must be above 0 and at most 1")
    return value


def _share(value: float, option: str) -> float:
    if not 0 <= value < 1:
        raise SpecError(f"{option} {value} must be at least 0 and below 1")
    return value


def _minutes(value: float) -> float:
    if not 0 <= value < math.inf:
        raise SpecError(f"--checkpoint-minutes {value} must be at least 0")
    return value


def _at_least(value: int, least: int, option: str) -> int:
    if value < least:
        raise SpecError(f"{option} {value} must be at least {least}")
    return value
