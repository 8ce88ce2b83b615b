"""What may stand on the command lines: types of values, and the options that several commands have."""

import argparse
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from restnet_runtime.budget import Budget
from restnet_runtime.bundle import SHIPPED_BUNDLE
from restnet_runtime.deadline import MOST_MS
from restnet_runtime.errors import UnitError
from restnet_runtime.providers import NAMES
from restnet_runtime.units import parse_quantity

if TYPE_CHECKING:
    from restnet_runtime.signatures import Keyring

_MODEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._~+-]{0,99}")  # as a bundle may be called

BUDGET_HELP = (
    "upper limits, separated by commas, any subset: cost as 200MFLOPs or 200MMACs (both count one multiply-accumulate as one, "
    "as the stitching literature does), latency as 30ms, memory as 150MB; and as 90%% the least accuracy, below which requests are refused"
)


def budget(text: str) -> Budget:
    try:
        return Budget.parse(text)
    except UnitError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def positive(kind: type[int] | type[float]) -> Callable[[str], float]:
    def parse(text: str) -> float:
        try:
            value = kind(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"{text!r} is not a number") from error
        if not 0 < value < 1e9:
            raise argparse.ArgumentTypeError(f"{text} must be above zero and below a thousand million")
        return value

    parse.__name__ = kind.__name__
    return parse


def size(text: str) -> int:
    try:
        kind, value = parse_quantity(text)
    except UnitError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    if kind != "memory_bytes":
        raise argparse.ArgumentTypeError(f"{text!r} is not a size: give a number with B, kB, MB or GB")
    return int(value)


def wait(text: str) -> float:
    """Milliseconds, 0 too."""
    return 0.0 if text.strip() == "0" else _time(text, 1000, "is not a wait: give 0 to 1s, as in 2ms")


def deadline(text: str) -> float:
    """Milliseconds."""
    return _time(text, MOST_MS, "is no deadline: give a time up to an hour, as in 500ms")


def _time(text: str, most_ms: float, otherwise: str) -> float:
    try:
        kind, value = parse_quantity(text)
    except UnitError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    if kind != "latency_ms" or value > most_ms:
        raise argparse.ArgumentTypeError(f"{text!r} {otherwise}")
    return value


def share(text: str) -> float:
    try:
        value = float(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from error
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} must be from 0 to 1")
    return value


def accuracy(text: str) -> float:
    try:
        value = float(text.rstrip("%")) / (100 if text.endswith("%") else 1)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not an accuracy: give 0.9 or 90%") from error
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text} must be above 0 and at most 1, or 100%")
    return value


def model(text: str) -> tuple[str | None, Path]:
    """`BUNDLE` or `NAME=BUNDLE`; what is no name before the first = is part of a path."""
    name, equals, path = text.partition("=")
    if not equals or "/" in name:
        return None, Path(text)
    if not _MODEL.fullmatch(name) or not path:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no NAME=BUNDLE: a name has letters, digits and . _ ~ + -, at most 100; a directory with = in its name is ./{text}"
        )
    return name, Path(path)


def port(text: str) -> int:
    if not text.isdigit() or not 0 <= int(text) <= 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port: give 0 (any free one) to 65535")
    return int(text)


class _Version(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from restnet_runtime.facts import print_version  # gathered only when it is asked for

        print_version(parser.prog)
        parser.exit()


def add_version(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--version", action=_Version, nargs=0, help="print versions and what matters of this device for a report, and exit")


def common_parser(command: str, description: str, *, several: bool = False) -> argparse.ArgumentParser:
    """several: `bundles`, a list of (name or `None`, directory), in place of `bundle`."""
    parser = argparse.ArgumentParser(command, description=description)
    add_version(parser)
    if several:
        parser.add_argument(
            "bundles",
            nargs="*",
            type=model,
            metavar="[NAME=]BUNDLE",
            help="directories, each a model of the name that its bundle has, or of NAME; the first is the default model "
            "(default: the digits that come along)",
        )
        return parser
    parser.add_argument("bundle", nargs="?", type=Path, default=SHIPPED_BUNDLE, help="directory (default: the digits that come along)")
    return parser


def add_signature_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--require-signature",
        type=Path,
        nargs="+",
        metavar="PUBKEY",
        help="refuse bundles that none of these keys has signed (public keys of Ed25519 in PEM, as restnet-sign makes them; extra sign)",
    )


def read_keys(args: argparse.Namespace) -> "Keyring | None":
    """The keys of `add_signature_option`; `None` where none are required. Raises `KeyFileError`."""
    if getattr(args, "require_signature", None) is None:
        return None
    from restnet_runtime.signatures import Keyring  # not above: most are not asked for a signature

    return Keyring.load(args.require_signature)


def add_engine_options(parser: argparse.ArgumentParser, *, several: bool = False) -> None:
    """several: the command takes several bundles."""
    shared = "; of several bundles each has these limits for itself, but for memory, which they share" if several else ""
    parser.add_argument("--budget", type=budget, default=Budget(), metavar="LIMITS", help=BUDGET_HELP + shared)
    parser.add_argument(
        "--threads",
        type=positive(int),
        metavar="N",
        help="threads of one request, fixed (default: what the cores, the CPU quota and other processes leave, as that changes)",
    )
    parser.add_argument(
        "--provider",
        type=lambda text: text.split(","),
        default=["cpu"],
        metavar="NAMES",
        help=f"execution providers of ONNX Runtime, separated by commas, most wanted first ({', '.join(NAMES)}; only cpu is tested); "
        "the CPU runs what they do not take",
    )
    parser.add_argument(
        "--cache",
        type=Path,
        metavar="DIR",
        help="compiled routes (default: $RESTNET_CACHE, else the user's cache directory, else one for temporary files)",
    )
    parser.add_argument(
        "--cache-size",
        type=size,
        metavar="SIZE",
        help="what all of that may take, as 500MB; what nobody uses goes first (default: 2 GB, or half of what the disk has for it)",
    )
