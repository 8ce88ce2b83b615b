"""`restnet-export`: trained anchors in, one bundle out."""

import argparse
import importlib.util
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import get_args

from restnet_runtime.arguments import add_version
from restnet_runtime.errors import ExportError, RestnetError
from restnet_runtime.manifest import Precision
from restnet_runtime.tables import routes_table

from .interrupts import Terminated, terminating
from .rules import RULES

DESCRIPTION = """\
Cut trained anchors into blocks, join them with stitching layers, and write one bundle with every route's cost and accuracy.

  restnet-export --anchors timm:deit_tiny_patch16_224 timm:deit_small_patch16_224 --data imagefolder:train --out deit
  restnet-export --anchors python:nets.py:small@small.pt python:nets.py:large@large.pt --input 32 --mean .5 .5 .5 --std .5 .5 .5 \\
                 --data npz:train.npz --val npz:val.npz --out mine
"""


def parser() -> argparse.ArgumentParser:
    """The command line of `restnet-export`."""
    result = argparse.ArgumentParser("restnet-export", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_version(result)
    result.add_argument(
        "--anchors",
        nargs="+",
        required=True,
        metavar="SPEC",
        help="two or more, small to large: timm:NAME[@CHECKPOINT], torchvision:NAME[@CHECKPOINT], "
        "python:FILE_OR_MODULE:FACTORY[@CHECKPOINT] or onnx:FILE (with --finetune none); NAME=SPEC renames one",
    )
    result.add_argument(
        "--data",
        required=True,
        metavar="DATA",
        help="to fit and tune on: imagefolder:DIR, npz:FILE (uint8 NHWC x, y), "
        "hf:NAME_OR_PATH[:SPLIT] (Hugging Face), digits; without labels too: a directory of images, an npz without y",
    )
    result.add_argument("--val", metavar="DATA", help="to score on, with labels (default: a fifth of --data, held out)")
    result.add_argument("--out", required=True, type=Path, metavar="DIR", help="the bundle; an older bundle there is replaced")
    rule = result.add_argument_group("stitching")
    rule.add_argument(
        "--rule",
        choices=tuple(RULES),
        default="restnet",
        help="restnet: early blocks of the larger, late blocks of the smaller, where they promise most; sn-net: small to large in sliding "
        "windows; both-ways: up, down, and there and back at equal depth (SN-Netv2); all: every pair of cuts (default: %(default)s)",
    )
    rule.add_argument("--kernel", type=int, help="sn-net: blocks in a window (default: 2)")
    rule.add_argument("--stride", type=int, help="sn-net: step between windows (default: 1)")
    rule.add_argument("--stages", type=int, nargs="+", metavar="N", help="sn-net: stages to stitch, from 0 (default: all but the last)")
    rule.add_argument(
        "--ends", type=int, metavar="N", help="restnet: the N most promising late parts for each early part, and the reverse (default: 1)"
    )
    rule.add_argument(
        "--nearest",
        action=argparse.BooleanOptionalAction,
        help="join only neighbours in size, or any two anchors (default: neighbours; all: any two)",
    )
    rule.add_argument(
        "--select",
        choices=("cka", "kl", "windows"),
        help="what tells which stitches promise most, for the rule restnet and for --max-routes: alike features (cka), alike predictions "
        "of small probes (kl), or equal depth (windows) (default: cka)",
    )
    rule.add_argument(
        "--samples", type=int, default=100, help="images behind similarity and least squares, at least 4 (default: %(default)s)"
    )
    rule.add_argument("--max-routes", type=int, metavar="N", help="make what promises most, and keep the N best routes, anchors among them")
    rule.add_argument(
        "--match-spread",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="stretch what a stitching layer answers to the spread of its target; without, plain least squares as in SN-Net (default: do)",
    )
    rule.add_argument(
        "--stitch-kernel",
        type=int,
        default=1,
        metavar="SIZE",
        help="side of what a stitching layer sees around each position, odd; 3 lets routes score more for half a block's work and nine "
        "times the layer's bytes; it stays 1 with a class token, and behind more than 128 channels (default: %(default)s, as in SN-Net)",
    )
    rule.add_argument(
        "--fold",
        action="store_true",
        help="multiply a 1x1 stitching layer into the block behind it where that is exact and cheaper: fewer MACs, more bytes",
    )
    _add_tuning(result)
    inputs = result.add_argument_group("input, in place of what the anchors bring; --input, --mean and --std for those that bring none")
    inputs.add_argument("--input", type=int, nargs="+", metavar="SIZE", help="height and width, or one number for both")
    inputs.add_argument("--mean", type=float, nargs="+", help="per channel, of values in 0..1; one channel is grey, three are RGB")
    inputs.add_argument("--std", type=float, nargs="+", help="per channel")
    inputs.add_argument("--resize", choices=("squash", "shortest"), help="squash: whatever the aspect; shortest: keep it, crop the centre")
    inputs.add_argument("--interpolation", choices=("nearest", "box", "bilinear", "bicubic"))
    inputs.add_argument(
        "--crop-pct", type=float, metavar="SHARE", help="of the resized image, what the centre crop keeps: above 0, at most 1"
    )
    inputs.add_argument(
        "--classes", type=Path, metavar="FILE", help="class names, a line each, in the anchors' order; an imagefolder is read in this order"
    )
    result.add_argument(
        "--device",
        choices=("auto", "cpu", "cuda"),
        default="auto",
        help="where activations, fits, scores and tuning are computed; under torchrun each process takes a GPU (default: a GPU, if any)",
    )
    result.add_argument("--workers", type=int, metavar="N", help="threads that decode images (default: one for each core)")
    result.add_argument(
        "--max-bad",
        type=float,
        default=0.01,
        metavar="SHARE",
        help="share of the images that may be unreadable; they are left out (default: %(default)s)",
    )
    result.add_argument("--resume", action="store_true", help="go on with the run that was broken off while it tuned for the same --out")
    result.add_argument(
        "--checkpoint-minutes",
        type=float,
        default=5.0,
        metavar="MINUTES",
        help="between two states in DIR.run, from which --resume goes on (default: %(default)s)",
    )
    result.add_argument("--seed", type=int, default=0, help="of all that is drawn (default: %(default)s)")
    result.add_argument(
        "--precision",
        nargs="+",
        choices=get_args(Precision),
        metavar="{fp32,int8}",
        default=["fp32"],
        help="int8 adds every route in 8-bit integers, calibrated on --samples and scored in ONNX Runtime (default: fp32 alone)",
    )
    result.add_argument(
        "--latency", action="store_true", help="measure every route on this machine; the report then shows accuracy over latency as well"
    )
    result.add_argument(
        "--sign", type=Path, metavar="KEY", help="sign the bundle with this private key, as restnet-sign --new-key makes one (extra sign)"
    )
    result.add_argument("--quiet", action="store_true", help="print errors only")
    return result


def _add_tuning(result: argparse.ArgumentParser) -> None:
    tune = result.add_argument_group("fine-tuning; no route and no anchor is left below where it starts on held-out images")
    tune.add_argument(
        "--finetune",
        choices=("none", "stitch", "full", "lora"),
        default="stitch",
        help="stitch: stitching layers alone; full: then all weights, the anchors protected; lora: low-rank updates of the fitted "
        "stitching layers (default: %(default)s)",
    )
    tune.add_argument(
        "--teacher",
        metavar="ANCHOR",
        help="who teaches: an anchor's name, 'ensemble' for all anchors together, or the SPEC of another network "
        "(default: the largest about as good as the best)",
    )
    tune.add_argument(
        "--ignore-labels",
        action="store_true",
        default=None,
        help="use no label: for images without, or with wrong ones",
    )
    tune.add_argument(
        "--loss",
        nargs="+",
        metavar="NAME=WEIGHT",
        help="labels (cross-entropy), soft and hard (distillation), features (of the anchor that the route ends in)",
    )
    tune.add_argument("--temperature", type=float, help="of soft distillation (default: 2)")
    tune.add_argument("--steps", type=int, help="of --batch images for every route; full: for the routes drawn (default: 100)")
    tune.add_argument("--batch", type=int, dest="batch_size", help="images in a batch (default: 64)")
    tune.add_argument("--accumulate", type=int, help="batches in a step (default: 1)")
    tune.add_argument("--lr", type=float, help="how far a step moves a layer's output, in deviations of its target (default: 0.05)")
    tune.add_argument("--held-out", type=float, metavar="SHARE", help="of --data, to judge on (default: 0.2)")
    tune.add_argument("--flip", action="store_true", default=None, help="mirror half of the images; where that keeps what they show")
    tune.add_argument("--shift", type=int, metavar="PIXELS", help="move images by up to so many pixels (default: 0)")
    tune.add_argument("--blend", action="store_true", default=None, help="blend pairs of images, and learn what teachers say of them")
    tune.add_argument(
        "--amp",
        choices=("auto", "off", "bf16", "fp16"),
        help="mixed precision: auto is bf16 on a GPU that has it, fp16 on another, off on the processor (default: auto)",
    )
    tune.add_argument("--bf16", dest="amp", action="store_const", const="bf16", help="the same as --amp bf16; faster on CPUs that have it")
    tune.add_argument("--rank", type=int, help="lora: of the updates (default: 8); full: low-rank updates of stitching layers")
    tune.add_argument("--lr-weights", type=float, help="full: how far a step moves a weight, relative to its tensor (default: 0.002)")
    tune.add_argument("--stitch-steps", type=int, metavar="STEPS", help="full: steps of stitch before; 0 for none (default: 100)")
    tune.add_argument("--sampling", choices=("random", "sandwich", "binned"), help="full: which routes a step draws (default: random)")
    tune.add_argument("--drawn", type=int, metavar="N", help="full: how many routes a step draws (default: 2)")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Returns the exit status: 0, 2 with one line on standard error, or 130 and 143 for Ctrl-C and SIGTERM, which write no bundle.
    """
    argv = sys.argv[1:] if argv is None else argv
    args = parser().parse_args(argv)
    try:
        with terminating():
            _require_extra()
            return _export(args, argv)
    except (RestnetError, OSError) as error:
        print(f"restnet-export: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as error:
        unfinished = Path(f"{args.out.resolve()}.run").exists()
        print(f"restnet-export: interrupted, no bundle was written{'; --resume goes on' if unfinished else ''}", file=sys.stderr)
        return 143 if isinstance(error, Terminated) else 130


def _export(args: argparse.Namespace, argv: Sequence[str]) -> int:
    from .devices import chosen_device
    from .options import settings_of
    from .pipeline import export_bundle
    from .ranks import joined_ranks

    with joined_ranks(chosen_device(args.device)) as ranks:
        settings = replace(settings_of(args, progress=ranks.first and not args.quiet), command=("restnet-export", *argv))
        bundle = export_bundle(settings, (lambda line: print(line, flush=True)) if settings.progress else (lambda _: None), ranks)
    if settings.progress:
        print(routes_table(bundle.routes))
        print(f"wrote {args.out}")
    return 0


def _require_extra() -> None:
    missing = [name for name in ("torch", "onnxscript", "matplotlib", "tqdm") if importlib.util.find_spec(name) is None]
    if missing:
        raise ExportError(f"this needs {', '.join(missing)}, which a device install leaves out: pip install 'restnet-runtime[export]'")
