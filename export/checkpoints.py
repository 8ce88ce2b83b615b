"""Checkpoint files: reading a state dict without running code from the file, and fitting it to a module key by key."""

import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from restnet_runtime.errors import SpecError

WRAPPERS = ("state_dict", "model")
PREFIX = "module."
"""What DataParallel puts in front of every key."""


def read_state(path: Path) -> dict[str, Tensor]:
    """The state dict of a `.safetensors` file or of anything torch.load reads with weights_only=True, on the CPU.

    Looks inside `state_dict` or `model` and drops a `module.` in front of all keys. Raises SpecError if the file cannot be read or holds no
    state dict.
    """
    if not path.is_file():
        raise SpecError(f"checkpoint {path} does not exist")
    try:
        loaded = _load(path)
    except pickle.UnpicklingError as error:
        raise SpecError(
            f"checkpoint {path} is damaged or holds more than tensors, and code from a checkpoint is never run: save model.state_dict()"
        ) from error
    except Exception as error:  # a damaged file fails in zip, pickle, struct or safetensors code
        raise SpecError(f"checkpoint {path} cannot be read: {type(error).__name__}: {error}") from error
    for wrapper in WRAPPERS:
        if isinstance(loaded, Mapping) and isinstance(loaded.get(wrapper), Mapping):
            loaded = loaded[wrapper]
            break
    if not isinstance(loaded, Mapping) or not loaded:
        raise SpecError(
            f"checkpoint {path} holds no state dict but {type(loaded).__name__}; it may be bare or under {' or '.join(WRAPPERS)}"
        )
    odd = [str(key) for key, value in loaded.items() if not isinstance(value, Tensor)]
    if odd:
        raise SpecError(f"checkpoint {path} holds no state dict: {_few(odd)} are no tensors")
    prefixed = all(str(key).startswith(PREFIX) for key in loaded)
    return {str(key)[len(PREFIX) if prefixed else 0 :]: value for key, value in loaded.items()}


def _load(path: Path) -> Any:
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    with warnings.catch_warnings():
        # A bare pickle of a newer protocol is announced before it is refused, or read.
        warnings.filterwarnings("ignore", "Detected pickle protocol", UserWarning)
        return torch.load(path, map_location="cpu", weights_only=True)


def fit_state(module: nn.Module, state: Mapping[str, Tensor], where: str) -> None:
    """Copy a state dict into a module. Raises SpecError, naming a few keys, if one is missing, unexpected or of another shape."""
    own = module.state_dict()
    # Files from before torch 0.4.1 have no counters, and a frozen network has no use for them.
    missing = [key for key in own if key not in state and not key.endswith("num_batches_tracked")]
    unexpected = [key for key in state if key not in own]
    differing = [key for key in own if key in state and state[key].shape != own[key].shape]
    shapes = [f"{key} {tuple(state[key].shape)} instead of {tuple(own[key].shape)}" for key in differing]
    found = {"missing": missing, "unexpected": unexpected, "mis-shaped": shapes}
    problems = [f"{what}: {_few(keys)}" for what, keys in found.items() if keys]
    if state and len(unexpected) == len(state):
        problems = [f"none of its {len(state)} keys is known there: it has {_few(unexpected)}, wanted are {_few(missing)}"]
    if problems:
        raise SpecError(f"{where} does not fit {type(module).__name__}: {'; '.join(problems)}")
    # `own` says which version of each layer's format this is, and some layers insist on knowing.
    own.update(state)
    module.load_state_dict(own)


def _few(keys: list[str], count: int = 4) -> str:
    return ", ".join(keys[:count]) + (f" and {len(keys) - count} more" if len(keys) > count else "")
