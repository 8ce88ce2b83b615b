"""Debiased minibatch CKA against the formula written out, and its laws."""

import numpy as np
import pytest
import torch
from torch import Tensor

from restnet_export.similarity import MIN_BATCH, MinibatchCKA
from restnet_runtime.errors import ExportError

torch.set_num_threads(1)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def hsic_1(X: np.ndarray, Y: np.ndarray) -> float:
    """Song et al. 2012, equation 5, term by term."""
    n = len(X)
    K, L = X @ X.T, Y @ Y.T
    np.fill_diagonal(K, 0)
    np.fill_diagonal(L, 0)
    one = np.ones(n)
    total = np.trace(K @ L) + (one @ K @ one) * (one @ L @ one) / ((n - 1) * (n - 2)) - 2 / (n - 2) * (one @ K @ L @ one)
    return float(total / (n * (n - 3)))


def cka(x: Tensor, y: Tensor) -> float:
    measure = MinibatchCKA()
    measure.update([x], [y])
    return float(measure.result()[0, 0])


def test_one_batch_is_the_direct_debiased_cka() -> None:
    xs = [noise(40, 7, seed=1), noise(40, 3, 2, 2, seed=2) + 5]
    ys = [xs[0] @ noise(7, 5, seed=3) + 2, noise(40, 9, seed=4), xs[1].flatten(1)[:, :6] ** 2]
    measure = MinibatchCKA()
    measure.update(xs, ys)
    direct = np.empty((2, 3))
    for i, x in enumerate(xs):
        for j, y in enumerate(ys):
            X, Y = x.flatten(1).numpy(), y.flatten(1).numpy()
            direct[i, j] = hsic_1(X, Y) / np.sqrt(hsic_1(X, X) * hsic_1(Y, Y))
    assert measure.result() == pytest.approx(direct, abs=1e-10)


def test_batches_average_hsic_weighted_by_images() -> None:
    x, y = noise(50, 6, seed=1), noise(50, 8, seed=2)
    y[:, :6] += x
    measure = MinibatchCKA()
    sums = np.zeros(3)
    for part in (slice(0, 20), slice(20, 40), slice(40, 50)):
        measure.update([x[part]], [y[part]])
        X, Y = x[part].numpy(), y[part].numpy()
        sums += len(X) * np.array([hsic_1(X, Y), hsic_1(X, X), hsic_1(Y, Y)])
    assert measure.result()[0, 0] == pytest.approx(sums[0] / np.sqrt(sums[1] * sums[2]), abs=1e-10)


def test_batches_estimate_what_all_images_give() -> None:
    x = noise(2000, 10, seed=1)
    y = x @ noise(10, 12, seed=2) + 2 * noise(2000, 12, seed=3)
    measure = MinibatchCKA()
    for a, b in zip(x.split(50), y.split(50), strict=True):
        measure.update([a], [b])
    assert measure.result()[0, 0] == pytest.approx(cka(x, y), abs=0.02)


def test_equal_features_give_one_whatever_rotation_scale_and_shift() -> None:
    x = noise(30, 16)
    rotation = torch.linalg.qr(noise(16, 16, seed=1)).Q
    assert cka(x, x) == pytest.approx(1, abs=1e-12)
    assert cka(x, 7.5 * x @ rotation + noise(16, seed=2)) == pytest.approx(1, abs=1e-10)


def test_rotation_and_scale_change_nothing_between_different_features() -> None:
    x, other = noise(30, 16), noise(30, 4, seed=3)
    y = torch.cat([x[:, :5], other], 1)
    rotation = torch.linalg.qr(noise(9, 9, seed=1)).Q
    assert 0.1 < cka(x, y) < 0.9
    assert cka(x, 0.01 * y @ rotation) == pytest.approx(cka(x, y), abs=1e-10)


def test_independent_wide_noise_is_near_zero() -> None:
    measure = MinibatchCKA()
    for seed in range(20):
        measure.update([noise(16, 2000, seed=2 * seed)], [noise(16, 2000, seed=2 * seed + 1)])
    assert abs(measure.result()[0, 0]) < 0.1


def test_float32_with_a_large_mean_keeps_its_digits() -> None:
    x, y = noise(32, 100), noise(32, 100, seed=1)
    y += x
    assert cka((x + 100).float(), (y - 300).float()) == pytest.approx(cka(x, y), abs=1e-4)
    assert cka(x.bfloat16(), y.bfloat16()) == pytest.approx(cka(x, y), abs=0.02)


def test_a_constant_feature_is_similar_to_nothing() -> None:
    measure = MinibatchCKA()
    measure.update([torch.ones(8, 3), noise(8, 3)], [noise(8, 3)])
    result = measure.result()
    assert result[0, 0] == 0
    assert result[1, 0] == pytest.approx(1)


def test_memory_does_not_grow_with_the_images() -> None:
    measure = MinibatchCKA()

    def held() -> int:
        return sum(array.nbytes for array in measure._sums or ())

    measure.update([noise(8, 50)] * 3, [noise(8, 50)] * 2)
    after_one = held()
    for seed in range(20):
        measure.update([noise(8, 50, seed=seed)] * 3, [noise(8, 50, seed=seed)] * 2)
    assert held() == after_one == 8 * (6 + 3 + 2)
    assert list(vars(measure)) == ["_sums"]


def test_a_short_last_batch_is_left_out() -> None:
    x, y = noise(20, 5), noise(20, 5, seed=1)
    measure = MinibatchCKA()
    measure.update([x], [y])
    expected = measure.result().copy()
    measure.update([x[: MIN_BATCH - 1]], [y[: MIN_BATCH - 1]])
    assert (measure.result() == expected).all()


@pytest.mark.parametrize(
    ("xs", "ys", "message"),
    [
        ([noise(8, 3)], [noise(7, 3)], "same images"),
        ([], [noise(8, 3)], "same images"),
        ([noise(8, 3)], [noise(8, 3), noise(8, 3)], r"1 and 2 features after batches of \(1, 1\)"),
        ([noise(8, 3) * torch.nan], [noise(8, 3)], "not finite"),
    ],
)
def test_what_is_refused(xs: list[Tensor], ys: list[Tensor], message: str) -> None:
    measure = MinibatchCKA()
    measure.update([noise(8, 3)], [noise(8, 3)])
    with pytest.raises(ExportError, match=message):
        measure.update(xs, ys)


def test_no_batch_no_result() -> None:
    measure = MinibatchCKA()
    measure.update([noise(3, 3)], [noise(3, 3)])
    with pytest.raises(ExportError, match="at least 4 images"):
        measure.result()
