"""Processes that tune one family together, as `torchrun` starts them: each takes a part of every batch, gradients are summed.

Every rank draws the same images and routes from the same generator, so nothing but gradients, scores and the first weights is exchanged.
"""

import importlib
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta

import torch
from torch import Tensor, distributed

from restnet_runtime.errors import ExportError

from .devices import CPU

PATIENCE = timedelta(days=2)
"""How long a rank waits for the others: the first one scores and writes meanwhile. torchrun ends all when one fails."""


class Ranks:
    """This process among `size` of them. Alone, nothing is exchanged."""

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        self.rank, self.size = rank, size

    @property
    def first(self) -> bool:
        """Is this the one that talks and writes?"""
        return self.rank == 0

    def share(self, items: Sequence[int]) -> Sequence[int]:
        """This rank's part of what all of them have."""
        return items[self.rank :: self.size]

    def sum_gradients(self, parameters: Sequence[Tensor]) -> None:
        """Replace each gradient by its sum over the ranks; what has none on any rank stays without."""
        if self.size == 1:
            return
        present = torch.tensor([float(parameter.grad is not None) for parameter in parameters])
        distributed.all_reduce(present, distributed.ReduceOp.MAX)
        chosen = [parameter for parameter, has in zip(parameters, present.tolist(), strict=True) if has]
        if not chosen:
            return
        sums = torch.cat([torch.zeros_like(item).flatten() if item.grad is None else item.grad.flatten() for item in chosen])
        distributed.all_reduce(sums)
        totals = torch.split(sums, [item.numel() for item in chosen])
        for parameter, total in zip(chosen, totals, strict=True):
            parameter.grad = total.view_as(parameter).clone()

    def sum(self, values: Tensor) -> Tensor:
        """The sum over the ranks, the same on all of them."""
        if self.size > 1:
            distributed.all_reduce(values)
        return values

    def join(self, part: Tensor, count: int) -> Tensor:
        """The (count,) values of which each rank has its `share`, the same on all of them."""
        if self.size == 1:
            return part
        whole = part.new_zeros(count)
        whole[self.rank :: self.size] = part
        return self.sum(whole)

    def take_from_first(self, tensors: Sequence[Tensor]) -> None:
        """Give the tensors the values that the first rank has, so that no rounding differs."""
        if self.size > 1:
            with torch.no_grad():
                for tensor in tensors:
                    distributed.broadcast(tensor, 0)

    def check_same(self, entries: Mapping[str, str]) -> None:
        """Raise `ExportError`, on all ranks, unless all have the same entries: those that differ would wait for each other for ever."""
        if self.size == 1:
            return
        gathered: list[Mapping[str, str]] = [{}] * self.size
        distributed.all_gather_object(gathered, dict(entries))
        first = gathered[0]
        for rank, found in enumerate(gathered):
            for name in (*first, *found):
                if found.get(name) != first.get(name):
                    told = f"{name} is {first.get(name, 'not there')} on rank 0, {found.get(name, 'not there')} on rank {rank}"
                    raise ExportError(f"processes that tune together must be given the same: {told}")

    def wait(self) -> None:
        """Until all ranks are here."""
        if self.size > 1:
            distributed.barrier()


@contextmanager
def joined_ranks(device: torch.device = CPU) -> Iterator[Ranks]:
    """The processes that torchrun started, told by its environment variables; else this one alone.

    device: on which this one computes. Gradients on a GPU are summed by nccl, everything else by gloo.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1 or "MASTER_ADDR" not in os.environ:
        yield Ranks()
        return
    # Modules of torch that torch.export imports keep the group of their time as a default argument: it would outlive its destruction, and
    # its threads would abort the process at its very end, when the other processes are gone.
    importlib.import_module("torch._dynamo")
    distributed.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
    try:
        yield Ranks(distributed.get_rank(), size)
    finally:
        distributed.destroy_process_group()
