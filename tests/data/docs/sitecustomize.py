"""On the path of the commands that `tests/test_docs.py` runs: torchvision built for another torch fails to import for want of two
operators that no classifier calls. They are declared when it is imported, as `tests/export/conftest.py` does for the tests."""

import importlib.abc
import sys
from typing import Any


class _Declaring(importlib.abc.MetaPathFinder):
    def find_spec(self, fullname: str, _path: Any = None, _target: Any = None) -> None:
        if fullname != "torchvision":
            return
        sys.meta_path.remove(self)
        import torch

        try:
            import torchvision  # noqa: F401
        except RuntimeError as error:
            if "torchvision::nms" not in str(error):
                raise
            for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
                del sys.modules[name]
            self.library = torch.library.Library("torchvision", "DEF")
            for name in ("nms", "qnms"):
                self.library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
            _KEPT.append(self)


_KEPT: list[_Declaring] = []
sys.meta_path.insert(0, _Declaring())
