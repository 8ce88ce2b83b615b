"""The interface of a bundle: what its clients rely on, and where another bundle breaks it."""

from restnet_runtime.manifest import Manifest


def breaks(before: Manifest, after: Manifest) -> str | None:
    """Why clients of one bundle cannot be served by another; `None` where they can.

    Inputs must have the same shape, and answers as many classes. Names of classes, preprocessing and routes may differ.
    """
    if after.input.shape != before.input.shape:
        shapes = ["x".join(map(str, one.input.shape)) for one in (after, before)]
        return f"takes inputs of {shapes[0]}, what is there takes {shapes[1]}"
    if len(after.classes) != len(before.classes):
        return f"has {len(after.classes)} classes, what is there has {len(before.classes)}"
    return None
