"""A device that is not the processor, for machines without one: tensors that say they are on `meta`, with values all the same.

As on a GPU, an operation takes tensors of one device only, but for scalars, copies, and indices; what is made without naming the device
is on the processor.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

DEVICE = torch.device("meta")

aten = torch.ops.aten
_ACROSS = {aten.copy_.default, aten._to_copy.default, aten.index.Tensor, aten.index_put_.default, aten.index_put.default}


class There(Tensor):
    """A tensor on the device; `values` are on the processor."""

    values: Tensor

    @staticmethod
    def __new__(cls, values: Tensor) -> "There":
        made: There = Tensor._make_wrapper_subclass(
            cls, values.size(), strides=values.stride(), dtype=values.dtype, device=DEVICE, storage_offset=values.storage_offset()
        )
        made.values = values
        return made

    def __init__(self, values: Tensor) -> None:
        pass

    def __repr__(self, *_: Any, **__: Any) -> str:
        return f"There({self.values})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None) -> Any:
        return _run(func, args, kwargs or {})


class _Mode(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None) -> Any:
        return _run(func, args, kwargs or {})


def _run(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    tensors = [item for item in tree_leaves((args, kwargs)) if isinstance(item, Tensor)]
    there = [item for item in tensors if isinstance(item, There)]
    if there and func not in _ACROSS:
        for item in tensors:
            if not isinstance(item, There) and item.ndim:
                raise RuntimeError(f"{func}: a tensor {tuple(item.shape)} on the processor among those on the device")
    if func is aten.copy_.default:  # across devices, in place
        _values(args[0]).copy_(_values(args[1]))
        return args[0]
    asked = kwargs.get("device")
    answer_there = bool(there) if asked is None else torch.device(asked) == DEVICE
    if func is aten.index.Tensor or func is aten.index_put_.default:
        answer_there = isinstance(args[0], There)
    kwargs = {**kwargs, **({"device": torch.device("cpu")} if asked is not None else {})}
    found = func(*tree_map(_values, tuple(args)), **tree_map(_values, kwargs))
    if func._schema.is_mutable and any(found is _values(item) for item in tensors):
        return next(item for item in tensors if _values(item) is found)
    return tree_map(lambda item: There(item) if isinstance(item, Tensor) and answer_there else item, found)


def _values(item: Any) -> Any:
    return item.values if isinstance(item, There) else item


@contextmanager
def other_device() -> Iterator[torch.device]:
    """The device, which there is within the context only."""
    with _Mode():
        yield DEVICE
