"""A network behind MLServer, as its documentation has it: a model class with one plain ONNX Runtime session. For `http_overhead.py`.

    python benchmarks/mlserver_app.py MODEL.onnx PORT FOLDER

FOLDER is where its settings are written. It speaks the Open Inference Protocol, over HTTP in JSON alone: it has no binary tensors there.
"""

import json
import os
import sys
from pathlib import Path

import onnxruntime as ort
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse


class Network(MLModel):
    async def load(self) -> bool:
        self.session = ort.InferenceSession(self.settings.parameters.uri, providers=["CPUExecutionProvider"])
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        x = self.decode(payload.inputs[0], default_codec=NumpyCodec)
        logits = self.session.run(["y"], {"x": x})[0]
        return InferenceResponse(model_name=self.name, outputs=[NumpyCodec.encode_output("logits", logits)])


def main() -> None:
    model, port, folder = Path(sys.argv[1]).absolute(), int(sys.argv[2]), Path(sys.argv[3])
    folder.mkdir(parents=True, exist_ok=True)
    settings = {"host": "127.0.0.1", "http_port": port, "grpc_port": port + 1, "metrics_port": port + 2, "debug": False}
    (folder / "settings.json").write_text(json.dumps(settings))
    described = {"name": "network", "implementation": "mlserver_app.Network", "parameters": {"uri": str(model)}}
    (folder / "model-settings.json").write_text(json.dumps(described))
    os.environ["PYTHONPATH"] = str(Path(__file__).parent)
    os.execv(str(Path(sys.executable).with_name("mlserver")), ["mlserver", "start", str(folder)])


if __name__ == "__main__":
    main()
