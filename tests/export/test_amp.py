"""Mixed precision: what is chosen where, and float16 with its scaled losses, on the processor."""

import copy
import io
from dataclasses import replace

import pytest
import torch
from torch import nn

from restnet_export.amp import Precision, chosen_type, has_bf16
from restnet_export.devices import CPU
from restnet_export.options import settings_of

from .test_tuner import QUICK, Family, made, same

__all__ = ["made"]


def test_what_is_computed_in() -> None:
    assert [chosen_type(amp, CPU) for amp in ("auto", "off", "bf16", "fp16")] == [None, None, torch.bfloat16, torch.float16]


@pytest.mark.parametrize(
    ("flags", "found"),
    [
        ({"avx2", "avx512f"}, False),
        ({"avx512f", "avx512_bf16"}, True),
        ({"amx_tile", "amx_bf16"}, True),
        ({"asimd", "asimddp"}, False),
        ({"asimd", "bf16"}, True),
        (set(), True),
    ],
)
def test_a_processor_has_bfloat16_or_is_not_known_to_lack_it(flags: set[str], found: bool) -> None:
    assert has_bf16(flags) == found


def test_a_small_gradient_survives_float16() -> None:
    """1e-9 has no float16; with the loss scaled by 65536 it has."""
    precision = Precision("fp16")
    weight = nn.Parameter(torch.ones(2, 2))
    optimiser = torch.optim.SGD([weight], lr=1.0)
    with precision.autocast():
        y = nn.functional.linear(torch.full((1, 2), 1e-3), weight)
    assert y.dtype == torch.float16
    precision.backward(1e-6 * y.float().sum())
    precision.unscale(optimiser)
    assert weight.grad is not None
    assert torch.allclose(weight.grad, torch.full((2, 2), 1e-9), rtol=0.05)
    precision.step(optimiser)
    precision.update()
    assert precision.scale == 65536


def test_no_step_is_made_of_what_is_not_finite() -> None:
    precision = Precision("fp16")
    one, two = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))
    optimisers = [torch.optim.SGD([weight], lr=1.0) for weight in (one, two)]
    precision.backward(torch.inf * one + 0.25 * two)
    for optimiser in optimisers:
        precision.unscale(optimiser)
        precision.step(optimiser)
    precision.update()
    assert (one.item(), two.item()) == (1, 0.75)
    assert precision.scale == 32768
    precision.update()  # without a step


def test_nothing_is_scaled_elsewhere() -> None:
    for amp in ("off", "bf16"):
        precision = Precision(amp)
        weight = nn.Parameter(torch.ones(1))
        precision.backward(3 * weight)
        assert weight.grad is not None
        assert (weight.grad.item(), precision.scale) == (3, 1)


def test_float16_ends_about_where_float32_does(made: Family) -> None:
    one, two = copy.deepcopy(made), copy.deepcopy(made)
    settings = replace(QUICK, mode="full", stitch_steps=10)
    exact, rough = one.tuned(settings), two.tuned(replace(settings, amp="fp16"))
    assert not same(one.layer_state(), two.layer_state())
    assert all(parameter.dtype == torch.float32 for layer in two.layers.values() for parameter in layer.parameters())
    for a, b in zip(exact, rough, strict=True):
        assert a.loss_before == b.loss_before  # what is measured is float32
        assert b.loss_after == pytest.approx(a.loss_after, rel=0.1)


def test_the_scale_is_part_of_the_state(made: Family) -> None:
    settings = replace(QUICK, amp="fp16")
    first, second, plain = (copy.deepcopy(made) for _ in range(3))
    with first.tuner(settings) as tuner:
        while tuner.steps_done < 3:
            tuner.step()
        tuner._precision._scaler.update(1024.0)
        buffer = io.BytesIO()
        torch.save(tuner.state_dict(), buffer)
    buffer.seek(0)
    state = torch.load(buffer, weights_only=True)
    with second.tuner(settings) as tuner:
        assert tuner._precision.scale == 65536
        tuner.load_state_dict(state)
        assert tuner._precision.scale == 1024
        tuner.step()
    with plain.tuner(QUICK) as tuner:  # in float32 from now on
        tuner.load_state_dict(state)
        assert tuner._precision.scale == 1
        tuner.step()


@pytest.mark.parametrize(
    ("options", "amp"), [([], "auto"), (["--amp", "fp16"], "fp16"), (["--bf16"], "bf16"), (["--bf16", "--amp", "off"], "off")]
)
def test_the_command_line(options: list[str], amp: str) -> None:
    from restnet_export.cli import parser

    args = parser().parse_args(["--anchors", "timm:a", "timm:b", "--data", "digits", "--out", "out", *options])
    assert settings_of(args, progress=False).tuning.amp == amp
