"""A network behind LitServe, as its documentation has it: one worker with one plain ONNX Runtime session. For `http_overhead.py`.

    python benchmarks/litserve_app.py MODEL.onnx PORT CHANNELS HEIGHT WIDTH

Takes a raw float32 body and answers with raw float32 logits: the least that there is to read and write.
"""

import sys
from typing import Annotated

import litserve as ls
import numpy as np
import onnxruntime as ort
from fastapi import Body, Response


class Network(ls.LitAPI):
    def setup(self, device):  # noqa: ARG002
        self.session = ort.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
        self.shape = tuple(int(size) for size in sys.argv[3:6])

    def decode_request(self, request: Annotated[bytes, Body(media_type="application/octet-stream")]):
        return np.frombuffer(request, "<f4").reshape(1, *self.shape)

    def predict(self, x):
        return self.session.run(["y"], {"x": x})[0]

    def encode_response(self, output) -> Response:
        return Response(output.tobytes(), media_type="application/octet-stream")


if __name__ == "__main__":
    ls.LitServer(Network(), accelerator="cpu").run(host="127.0.0.1", port=int(sys.argv[2]), generate_client_file=False, log_level="warning")
