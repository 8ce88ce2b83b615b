"""Noise: what is run where only time and memory count, because these do not depend on what an image shows."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:  # numpy is not imported here: some processes are measured from their start
    import numpy as np
    import numpy.typing as npt

    from restnet_runtime.bundle import Bundle


def noise(bundle: "Bundle", batch: int = 1) -> "npt.NDArray[np.float32]":
    """Inputs (batch, C, H, W) float32, the same ones every time."""
    import numpy as np

    return np.random.default_rng(0).standard_normal((batch, *bundle.manifest.input.shape)).astype(np.float32)
