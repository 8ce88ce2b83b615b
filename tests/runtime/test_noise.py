"""What is run where only time and memory count."""

import subprocess
import sys

import numpy as np

from restnet_runtime.bundle import Bundle
from restnet_runtime.noise import noise


def test_it_has_the_shape_of_an_input_and_is_the_same_every_time(family_bundle: Bundle) -> None:
    x = noise(family_bundle, 3)
    assert (x.shape, x.dtype) == ((3, 1, 8, 8), np.float32)
    assert np.array_equal(x, noise(family_bundle, 3))
    assert np.array_equal(x[:1], noise(family_bundle))
    assert len({row.tobytes() for row in x}) == 3


def test_a_process_that_is_timed_from_its_start_may_import_it() -> None:
    program = "import sys, restnet_runtime.noise; print('numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout == "False\n"
