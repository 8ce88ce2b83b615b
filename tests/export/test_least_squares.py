"""Ridge least squares from moments, beside numpy's and beside sums over the rows themselves."""

import numpy as np
import pytest
import torch
from torch import Tensor

from restnet_export.least_squares import (
    MOST_STRETCH,
    RIDGES,
    WEAK_RIDGES,
    Moments,
    best_ridge,
    held_out_error,
    joint,
    mean_of_solutions,
    merged,
    solve,
    spread_matched,
)
from restnet_runtime.errors import ExportError

torch.set_num_threads(1)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_without_a_ridge_it_is_lstsq() -> None:
    x, y = noise(300, 8).double() * torch.arange(1, 9) + 50, noise(300, 3, seed=1).double() - 20
    y = y + x @ noise(8, 3, seed=2).double()
    weight, bias = solve(Moments.of(x, y), 0)
    expected = np.linalg.lstsq(np.c_[x.numpy(), np.ones(300)], y.numpy(), rcond=None)[0]
    assert weight.dtype == torch.float64
    assert weight.numpy() == pytest.approx(expected[:-1].T, abs=1e-9)
    assert bias.numpy() == pytest.approx(expected[-1], abs=1e-8)


def test_the_ridge_is_lstsq_with_penalty_rows_and_a_free_bias() -> None:
    x, y = noise(100, 6).double() * 3 + 10, noise(100, 2, seed=1).double() + 7
    ridge = 0.25
    weight, bias = solve(Moments.of(x, y), ridge)
    strength = np.sqrt(ridge * 100 * x.numpy().var(0).mean())
    rows = np.r_[np.c_[x.numpy(), np.ones(100)], np.c_[strength * np.eye(6), np.zeros(6)]]
    expected = np.linalg.lstsq(rows, np.r_[y.numpy(), np.zeros((6, 2))], rcond=None)[0]
    assert weight.numpy() == pytest.approx(expected[:-1].T, abs=1e-10)
    assert bias.numpy() == pytest.approx(expected[-1], abs=1e-9)


def test_a_huge_ridge_leaves_the_mean() -> None:
    x, y = noise(50, 4), noise(50, 2, seed=1) + 3
    weight, bias = solve(Moments.of(x, y), 1e12)
    assert weight.abs().max() < 1e-9
    assert torch.allclose(bias, y.double().mean(0))


def test_parts_are_one_go_also_far_from_zero() -> None:
    x, y = noise(40_000, 5) + 1000, noise(40_000, 2, seed=1) - 500  # more rows than one inner chunk holds
    y[:, 0] += x[:, 0]
    parts = merged([Moments.of(a, b) for a, b in zip(x.split(777), y.split(777), strict=True)])
    for found in (Moments.of(x, y), parts):
        exact_x, exact_y = x.double() - x.double().mean(0), y.double() - y.double().mean(0)
        assert found.rows == 40_000
        assert torch.allclose(found.mean_x, x.double().mean(0), rtol=1e-12)
        assert torch.allclose(found.xx, exact_x.T @ exact_x, rtol=1e-9, atol=1e-6)
        assert torch.allclose(found.xy, exact_x.T @ exact_y, rtol=1e-9, atol=1e-6)
        assert torch.allclose(found.yy, (exact_y**2).sum(0), rtol=1e-9)
    assert solve(parts, 0)[0][0, 0] == pytest.approx(1, abs=0.03)


def test_memory_does_not_grow_with_the_rows() -> None:
    def held(moments: Moments) -> int:
        return sum(value.nbytes for value in vars(moments).values() if isinstance(value, Tensor))

    first = Moments.of(noise(10, 7), noise(10, 3))
    many = merged([first, *(Moments.of(noise(1000, 7), noise(1000, 3)) for _ in range(20))])
    assert many.rows == 20_010
    assert held(many) == held(first) == 8 * (7 * 7 + 7 * 3 + 7 + 2 * 3)


def test_dependent_and_constant_channels_have_the_solution_of_least_norm() -> None:
    x = noise(60, 1).double().expand(60, 4).clone()
    x[:, 3] = 5
    y = 2 * x[:, :1] + 1
    weight, bias = solve(Moments.of(x, y), 0)
    assert weight.numpy() == pytest.approx(np.array([[2 / 3, 2 / 3, 2 / 3, 0]]), abs=1e-8)
    assert bias.numpy() == pytest.approx([1], abs=1e-8)

    weight, bias = solve(Moments.of(torch.ones(9, 2), y[:9].float()), 1e-3)
    assert not weight.any()
    assert bias.item() == pytest.approx(y[:9].mean().item(), abs=1e-6)


@pytest.mark.parametrize("ridge", [0, 1e-3, 0.5])
def test_the_residual_is_that_of_the_rows(ridge: float) -> None:
    x, y = noise(200, 5) + 3, noise(200, 2, seed=1) + noise(200, 5)[:, :2] - 8
    fitted, other = Moments.of(x[:100], y[:100]), Moments.of(x[100:], y[100:])
    weight, bias = solve(fitted, ridge)
    for moments, rows in ((fitted, slice(0, 100)), (other, slice(100, 200))):
        expected = ((x[rows].double() @ weight.T + bias - y[rows].double()) ** 2).sum().item()
        assert moments.residual(weight, bias) == pytest.approx(expected, rel=1e-9)
    assert other.spread == pytest.approx(((y[100:] - y[100:].mean(0)) ** 2).sum().item(), rel=1e-5)


def test_some_of_the_targets() -> None:
    x, y = noise(50, 4), noise(50, 6, seed=1)
    part, alone = Moments.of(x, y).targets(slice(2, 5)), Moments.of(x, y[:, 2:5])
    assert all(torch.allclose(a, b) for a, b in zip(solve(part, 1e-3), solve(alone, 1e-3), strict=True))
    assert part.spread == pytest.approx(alone.spread)


def test_pairs_that_share_a_map_are_solved_jointly_or_averaged() -> None:
    xs, ys = [noise(40, 4, seed=s) for s in (1, 2)], [noise(40, 3, seed=s) for s in (3, 4)]
    pairs = [Moments.of(x, y) for x, y in zip(xs, ys, strict=True)]
    weight, bias = joint(pairs, 0)
    expected = np.linalg.lstsq(np.c_[torch.cat(xs).numpy(), np.ones(80)], torch.cat(ys).numpy(), rcond=None)[0]
    assert weight.numpy() == pytest.approx(expected[:-1].T, abs=1e-6)
    assert bias.numpy() == pytest.approx(expected[-1], abs=1e-6)

    weight, bias = mean_of_solutions(pairs, 0)
    own = [np.linalg.lstsq(np.c_[x.numpy(), np.ones(40)], y.numpy(), rcond=None)[0] for x, y in zip(xs, ys, strict=True)]
    assert weight.numpy() == pytest.approx((own[0] + own[1])[:-1].T / 2, abs=1e-6)
    assert bias.numpy() == pytest.approx((own[0] + own[1])[-1] / 2, abs=1e-6)


def test_the_held_out_error_is_that_of_cross_validation_by_hand() -> None:
    x, y = noise(90, 5), noise(90, 2, seed=1) + noise(90, 5)[:, :2]
    folds = [Moments.of(x[f::3], y[f::3]) for f in range(3)]
    lost = spread = 0.0
    for held in range(3):
        rest = [f for f in range(3) if f != held]
        a = np.concatenate([np.c_[x[f::3].numpy(), np.ones(30)] for f in rest])
        solution = np.linalg.lstsq(a, np.concatenate([y[f::3].numpy() for f in rest]), rcond=None)[0]
        lost += float(((np.c_[x[held::3].numpy(), np.ones(30)] @ solution - y[held::3].numpy()) ** 2).sum())
        spread += float(((y[held::3] - y[held::3].mean(0)) ** 2).sum())
    assert held_out_error([folds], joint, 0) == pytest.approx(lost / spread, rel=1e-4)


@pytest.mark.parametrize(("rows", "noisy"), [(45, 2.0), (3000, 0.01)], ids=["few and noisy", "many and clear"])
def test_the_ridge_is_the_best_of_all_on_held_out_rows(rows: int, noisy: float) -> None:
    x = noise(rows, 30)
    y = x @ noise(30, 4, seed=1) + noisy * 5 * noise(rows, 4, seed=2)
    folds = [Moments.of(x[f::3], y[f::3]) for f in range(3)]
    ridge, error = best_ridge([folds])
    errors = {strength: held_out_error([folds], joint, strength) for strength in (RIDGES if rows < 300 else WEAK_RIDGES)}
    assert error == errors[ridge] == min(errors.values())
    assert ridge >= 0.1 if noisy > 1 else ridge <= 1e-3


def test_a_target_that_never_varies_is_no_error() -> None:
    folds = [Moments.of(noise(20, 3, seed=f), torch.full((20, 2), 4.0)) for f in range(2)]
    ridge, error = best_ridge([folds])
    weight, bias = joint([merged(folds)], ridge)
    assert np.isfinite(error)
    assert weight.abs().max() < 1e-9
    assert bias.numpy() == pytest.approx([4, 4])


def test_what_is_refused() -> None:
    with pytest.raises(ExportError, match="do not match"):
        Moments.of(noise(3, 2), noise(4, 2))
    with pytest.raises(ExportError, match="do not match"):
        Moments.of(noise(0, 2), noise(0, 2))
    for broken in (torch.inf, torch.nan):
        with pytest.raises(ExportError, match="not finite"):
            Moments.of(noise(3, 2) * broken, noise(3, 2))
        with pytest.raises(ExportError, match="not finite"):
            Moments.of(noise(3, 2), noise(3, 2) * broken)
    with pytest.raises(ExportError, match=r"\(4, 2\) channels in and out after \(2, 2\)"):
        merged([Moments.of(noise(3, 2), noise(3, 2)), Moments.of(noise(3, 4), noise(3, 2))])
    with pytest.raises(ExportError, match=r"ridge -0\.1"):
        solve(Moments.of(noise(3, 2), noise(3, 2)), -0.1)


def test_matched_outputs_have_the_spread_and_mean_of_their_targets() -> None:
    x = noise(400, 5).double() + 2
    y = x @ noise(5, 3, seed=2).double() + 2 * noise(400, 3, seed=1).double() - 4  # noise that x cannot tell
    moments = Moments.of(x, y)
    plain = solve(moments, 1e-6)
    weight, bias = spread_matched(plain, moments)
    answered, before = x @ weight.T + bias, x @ plain[0].T + plain[1]
    assert (before.var(0) < 0.9 * y.var(0)).any()
    assert answered.var(0).numpy() == pytest.approx(y.var(0).numpy(), rel=1e-9)
    assert answered.mean(0).numpy() == pytest.approx(y.mean(0).numpy(), abs=1e-9)


def test_what_cannot_be_predicted_is_stretched_only_so_far_and_nothing_is_shrunk() -> None:
    x, y = noise(2000, 4).double(), noise(2000, 2, seed=1).double()
    moments = Moments.of(x, y)
    plain = solve(moments, 1e-6)
    assert torch.allclose(spread_matched(plain, moments)[0], MOST_STRETCH * plain[0])
    large = 10 * noise(2, 4, seed=3).double(), plain[1]
    assert torch.equal(spread_matched(large, moments)[0], large[0])
    nothing = torch.zeros(2, 4).double(), plain[1]
    assert torch.equal(spread_matched(nothing, moments)[0], nothing[0])
