"""Data specifications: what `--data` and `--val` name, and which images are kept apart to score on."""

from pathlib import Path

from restnet_runtime.errors import SpecError

from .hub import read_hub, split_hub_name
from .images import Images
from .readers import read_digits, read_folder
from .samples import Samples
from .stored import read_npz

__all__ = ["Images", "Samples", "load_images", "load_split"]

ALLOWED = (
    "imagefolder:DIR, npz:FILE (arrays x uint8 NHWC, y int64), hf:NAME_OR_PATH[:SPLIT] (a data set of Hugging Face), "
    "digits, digits:train or digits:val"
)


def load_images(spec: str) -> Images:
    """The images that `spec` names. Raises `SpecError` saying what is allowed."""
    kind, _, rest = spec.partition(":")
    if kind == "digits" and rest in ("", "train", "val"):
        return read_digits(rest)
    if kind == "npz" and rest:
        return read_npz(Path(rest))
    if kind == "imagefolder" and rest:
        return read_folder(Path(rest))
    if kind == "hf" and rest:
        return read_hub(rest)
    raise SpecError(f"data {spec!r} is not one of: {ALLOWED}")


def load_split(data: str, val: str | None, seed: int) -> tuple[Images, Images]:
    """(to fit and tune on, to score on). Without `val` a fifth of each class of `data` is held out; digits has a split of its own.

    Raises `SpecError` if the images to score on have no labels or are among those to fit on.
    """
    if data == "digits" and val in (None, "digits:val"):
        return load_images("digits:train"), load_images("digits:val")
    if val is not None:
        if _overlap(data, val):
            raise SpecError(f"--data {data} and --val {val} are the same images; what is tuned on them must be scored on others")
        scoring = load_images(val)
        if not scoring.has_labels:
            raise SpecError(f"--val {val} has no labels: routes are scored by how often they are right")
        return load_images(data), scoring
    images = load_images(data)
    if not images.has_labels:
        raise SpecError(f"data {data!r} has no labels, so routes cannot be scored on a part of it: give --val")
    rest, held_out = images.split(0.2, seed)
    if not len(held_out):
        raise SpecError(f"data {data!r} has one image of each class at most, so none can be held out: give --val")
    return rest, held_out


def _overlap(data: str, val: str) -> bool:
    """Do both name one file or directory, or parts of one data set that share images?"""
    (kind, _, rest), (other_kind, _, other_rest) = data.partition(":"), val.partition(":")
    if kind != other_kind:
        return False
    if kind == "digits":
        return rest == other_rest or not rest or not other_rest
    if kind == "hf":
        (name, split), (other_name, other_split) = split_hub_name(rest), split_hub_name(other_rest)
        return Path(name).resolve() == Path(other_name).resolve() and (split == other_split or None in (split, other_split))
    return Path(rest).resolve() == Path(other_rest).resolve()
