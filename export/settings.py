"""What an export was asked for."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from .inputs import GivenPreprocessing
from .promise import Select
from .rules import Rule, make_rule


@dataclass(frozen=True)
class ExportSettings:
    """What `restnet-export` was asked for.

    anchors:        specs, small to large
    data, val:      data specs: fit and tune on the first, score on the second (default: a held-out part of the first)
    samples:        images behind similarity and least squares, at least 4
    preprocessing:  in place of what the anchors bring
    input_shape:    (channels, height, width), for anchors that do not know theirs or can be built for another
    classes:        class names in the anchors' order; default: those of the data, or the numbers
    stages, kernel, stride, nearest: of the rule; None is the rule's own
    select:         what tells which stitches promise most
    max_routes:     keep so many, the anchors among them
    epochs, lr:     of fine-tuning
    fold:           stitching layers into the block behind them, where that is exact and cheaper
    latency:        measure every route on this machine, for the report
    """

    anchors: tuple[str, ...]
    data: str
    out: Path
    val: str | None = None
    rule: Literal["restnet", "sn-net", "both-ways", "all"] = "restnet"
    select: Select = "cka"
    finetune: Literal["none", "stitch"] = "stitch"
    samples: int = 100
    max_routes: int | None = None
    fold: bool = False
    seed: int = 0
    preprocessing: GivenPreprocessing = field(default_factory=GivenPreprocessing)
    input_shape: tuple[int, int, int] | None = None
    classes: tuple[str, ...] | None = None
    stages: tuple[int, ...] | None = None
    kernel: int | None = None
    stride: int | None = None
    nearest: bool | None = None
    epochs: int = 5
    lr: float = 3e-4
    latency: bool = False
    progress: bool = True

    def rule_with_options(self) -> Rule:
        """The rule that is asked for. Raises `RuleError` for an option that it has not."""
        options = {name: getattr(self, name) for name in ("stages", "kernel", "stride", "nearest")}
        return make_rule(self.rule, **{name: value for name, value in options.items() if value is not None})

    def told(self) -> dict[str, object]:
        """As JSON values by name, for whoever wants to repeat the run."""

        def plain(value: object) -> object:
            return {name: plain(part) for name, part in vars(value).items()} if isinstance(value, GivenPreprocessing) else _json(value)

        return {name: plain(value) for name, value in vars(self).items() if name != "progress"}


def _json(value: object) -> object:
    if isinstance(value, tuple):
        return [_json(part) for part in value]
    return str(value) if isinstance(value, Path) else value
