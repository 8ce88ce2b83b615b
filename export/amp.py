"""In which precision routes are run for gradients. Weights, losses and everything that is measured are float32 always."""

from collections.abc import Collection
from typing import Any, Literal

import torch
from torch import Tensor

from restnet_runtime.processor import read_processor

from .devices import CPU

Amp = Literal["auto", "off", "bf16", "fp16"]

_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def chosen_type(amp: Amp, device: torch.device) -> torch.dtype | None:
    """What to compute in; None is float32. `auto` is bfloat16 on a GPU that has it, float16 on another one, float32 elsewhere."""
    if amp == "auto" and device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    return _TYPES.get(amp)


def emulated(amp: Amp, device: torch.device) -> bool:
    """Is bfloat16 asked of a processor without instructions for it? It computes all the same, slower than in float32."""
    return amp == "bf16" and device.type == "cpu" and not has_bf16(read_processor().features)


def has_bf16(features: Collection[str]) -> bool:
    """x86: AVX-512 or AMX for bfloat16; ARM: its own extension. Where no feature is known nothing is said against it."""
    return not features or not {"avx512_bf16", "amx_bf16", "bf16"}.isdisjoint(features)


class Precision:
    """Automatic mixed precision for a loop with any number of optimisers.

    In float16 losses are scaled up, so that small gradients are not lost: `backward`, then `unscale` and `step` for each optimiser, then
    `update`. An optimiser whose gradients are not finite makes no step; the scale then falls.
    """

    def __init__(self, amp: Amp = "off", device: torch.device = CPU) -> None:
        self._device, self.dtype = device.type, chosen_type(amp, device)
        scaled = self.dtype is torch.float16
        self._scaler = torch.amp.GradScaler(device.type if scaled else "cpu", enabled=scaled)
        self._steps = 0

    @property
    def scale(self) -> float:
        """What losses are multiplied by; 1 unless in float16."""
        return float(self._scaler.get_scale())

    def autocast(self) -> torch.autocast:
        if self.dtype is None:
            return torch.autocast("cpu", enabled=False)
        return torch.autocast(self._device, self.dtype)

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of a loss, scaled, to those there are."""
        self._scaler.scale(loss).backward()  # type: ignore[no-untyped-call]

    def unscale(self, optimiser: torch.optim.Optimizer) -> None:
        """Gradients of the optimiser's parameters, which one of them has at least, as they are without the scale."""
        self._scaler.unscale_(optimiser)

    def step(self, optimiser: torch.optim.Optimizer) -> None:
        self._scaler.step(optimiser)
        self._steps += 1

    def update(self) -> None:
        """After the optimisers' steps, if there were any."""
        if self._steps:
            self._scaler.update()
        self._steps = 0

    def state_dict(self) -> dict[str, Any]:
        return self._scaler.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Of a run in another precision nothing is taken over."""
        if state and self._scaler.is_enabled():
            self._scaler.load_state_dict(state)
