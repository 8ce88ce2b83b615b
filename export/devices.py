"""Where similarity, least squares, scores and tuning are computed: the processor or a GPU. Cutting and writing stay on the processor."""

import os
import warnings
from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor, fx, nn

from restnet_runtime.errors import ExportError

DeviceName = Literal["auto", "cpu", "cuda"]

CPU = torch.device("cpu")


def chosen_device(asked: DeviceName = "auto") -> torch.device:
    """The device for this process: `auto` is a GPU where torch has one, of several processes each has its own (torchrun's LOCAL_RANK).

    A GPU is made the present one, and set to compute float32 in float32: TensorFloat-32 would change scores from one device to another.
    Raises `ExportError` where a GPU is asked for and there is none, or there are more processes than GPUs.
    """
    if asked == "cpu" or (asked == "auto" and not torch.cuda.is_available()):
        return CPU
    if not torch.cuda.is_available():
        built = torch.version.cuda
        why = f"torch {torch.__version__} is built for CUDA {built} and finds no GPU" if built else f"torch {torch.__version__} has no CUDA"
        raise ExportError(f"--device cuda: {why}; give --device cpu, or auto")
    return _gpu(int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count())


def _gpu(local_rank: int, count: int) -> torch.device:
    if local_rank >= count:
        raise ExportError(
            f"--device cuda: process {local_rank} of this machine (counted from 0) has no GPU, there are {count}: start fewer with "
            "--nproc-per-node, or give --device cpu"
        )
    device = torch.device("cuda", local_rank)
    torch.cuda.set_device(device)
    exact_float32()
    return device


def device_name(device: torch.device) -> str:
    """What to call it: a GPU by its model."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)


def exact_float32() -> None:
    """Matrix products and convolutions of float32 in float32.

    By torch's older switches: torch.export reads them, and they cannot be read any more once a newer one (`fp32_precision`) was set.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some versions recommend the newer ones
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = False


def on_device(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor there. What goes to a GPU goes by way of pinned memory, and the processor does not wait for it."""
    if tensor.device == device:
        return tensor
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def device_of(module: nn.Module) -> torch.device:
    """Where its first parameter or buffer is; the processor for one that has none."""
    return next((tensor.device for tensors in (module.parameters(), module.buffers()) for tensor in tensors), CPU)


def move(modules: Iterable[nn.Module], device: torch.device) -> None:
    """Move modules in place: parameters stay the same objects, buffers that several modules share are shared again.

    Graphs (blocks of anchors) say on which device their operations make tensors: they are told the new one.
    """
    moved: dict[int, tuple[Tensor, Tensor]] = {}

    def there(tensor: Tensor) -> Tensor:
        if isinstance(tensor, nn.Parameter):
            return tensor.to(device)
        if id(tensor) not in moved:
            moved[id(tensor)] = tensor, tensor.to(device)  # the first keeps its id from being used again
        return moved[id(tensor)][1]

    for module in modules:
        module._apply(there)  # type: ignore[no-untyped-call]
        for part in module.modules():
            if isinstance(part, fx.GraphModule):
                _retarget(part, device)


def _retarget(module: fx.GraphModule, device: torch.device) -> None:
    changed = False
    for node in module.graph.nodes:
        if any(isinstance(value, torch.device) and value != device for value in (*node.args, *node.kwargs.values())):
            node.args = tuple(device if isinstance(value, torch.device) else value for value in node.args)
            node.kwargs = {name: device if isinstance(value, torch.device) else value for name, value in node.kwargs.items()}
            changed = True
    if changed:
        module.recompile()
