"""Images that cannot be read: found before the work begins, counted, listed and left out, up to a limit."""

import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from restnet_runtime.errors import SpecError

from .images import Images
from .samples import Samples

_LISTED = 10


def readable(samples: Samples, share: float, say: Callable[[str], None], workers: int = 0, count: int | None = None) -> Images:
    """The images of `samples` that can be decoded, in their order; the first `count` of them where that is given.

    share:   of the images that are looked at, so many may be bad, rounded up; each is told to `say`.
    workers: threads that decode.
    Raises `SpecError` naming the first of them where there are more.
    """
    images = samples.images
    wanted = len(images) if count is None else min(count, len(images))
    if not images.encoded:
        return images.first(wanted)
    allowed = math.ceil(share * wanted)
    good: list[int] = []
    bad: list[str] = []
    for index, reason in enumerate(_reasons(samples, workers)):
        if reason is None:
            good.append(index)
        else:
            bad.append(reason)
        if len(bad) > allowed:
            raise SpecError(
                f"more than {allowed} of {wanted} images of {images.name!r} cannot be read (--max-bad {share:g}), the first: {bad[0]}"
            )
        if len(good) == wanted:
            break
    if bad:
        say(f"{len(bad)} of {len(good) + len(bad)} images of {images.name!r} cannot be read and are left out:")
        for line in bad[:_LISTED]:
            say(f"  {line}")
        if len(bad) > _LISTED:
            say(f"  and {len(bad) - _LISTED} more")
    if not good:
        raise SpecError(f"data {images.name!r} has no image that can be read; the first: {bad[0]}")
    return images.subset(np.array(good))


def _reasons(samples: Samples, workers: int) -> Iterator[str | None]:
    """Why image i cannot be used, or None, in order."""

    def reason(index: int) -> str | None:
        try:
            samples.prepared(index)
        except SpecError as error:
            return str(error)
        return None

    if not workers:
        yield from map(reason, range(len(samples)))
        return
    with ThreadPoolExecutor(workers, "screen") as pool:
        step = 32 * workers  # looked at ahead, so that few are decoded in vain where the first ones suffice
        for start in range(0, len(samples), step):
            yield from pool.map(reason, range(start, min(start + step, len(samples))))
