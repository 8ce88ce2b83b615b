"""An ONNX graph as a torch module: run by ONNX Runtime, without gradients."""

from collections.abc import Mapping
from typing import Any

import onnx
import onnxruntime as ort
import torch
from torch import Tensor, nn

from restnet_runtime.errors import ExportError

from .onnx_scopes import Scope


class OnnxModule(nn.Module):
    """Runs a graph that takes `x` (B, *in) float32 and returns `y` (B, *out) float32, of any batch.

    It has no parameters, and autograd stops at it: an anchor from an ONNX file can be cut, compared, fitted and scored, not tuned.
    `scopes` are the modules that each value of the graph came from.
    """

    def __init__(self, model: onnx.ModelProto, scopes: Mapping[str, tuple[Scope, ...]] | None = None) -> None:
        super().__init__()
        self.model = model
        self.scopes = dict(scopes or {})
        self._session: ort.InferenceSession | None = None

    def forward(self, x: Tensor) -> Tensor:
        """(B, *in) -> (B, *out), on the device of `x`. Raises ExportError where a gradient is asked for, or ONNX Runtime cannot run it."""
        if torch.is_grad_enabled() and x.requires_grad:
            raise ExportError(f"{self.model.graph.name}: ONNX Runtime gives no gradients, so what comes from an ONNX file cannot be tuned")
        try:
            if self._session is None:
                self._session = session_of(self.model)
            (y,) = self._session.run(None, {"x": x.detach().cpu().contiguous().numpy()})
        except Exception as error:  # ONNX Runtime's errors share no public base
            raise ExportError(f"{self.model.graph.name}: ONNX Runtime cannot run it: {' '.join(str(error).split())[:300]}") from error
        return torch.from_numpy(y).to(x.device)

    def __getstate__(self) -> dict[str, Any]:
        """Without the session, which cannot be copied: a copy makes its own."""
        return {**self.__dict__, "_session": None}


def session_of(model: onnx.ModelProto) -> ort.InferenceSession:
    """A session with torch's number of threads that do not spin: one for every block of an anchor is alive at a time."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = torch.get_num_threads()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
