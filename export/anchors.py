"""Anchors: trained networks from timm, from torchvision, from the user's own code or from an ONNX file, ready to be cut."""

import difflib
import importlib
import re
import sys
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from restnet_runtime.errors import SpecError
from restnet_runtime.fields import FieldError, check
from restnet_runtime.manifest import Name, Preprocessing

from .checkpoints import fit_state, read_state
from .onnx_file import read_onnx
from .user_code import importable, run_file

Kind = Literal["python", "timm", "torchvision", "onnx"]

FORMS = (
    "python:FILE_OR_MODULE:FACTORY[@CHECKPOINT], timm:NAME[@CHECKPOINT], torchvision:NAME[@CHECKPOINT] or onnx:FILE, "
    "each with an optional ANCHOR= in front that names the anchor"
)
RANDOM = "random"
"""In place of a checkpoint: random weights, the same each time, for trying a pipeline out. A file of that name is ./random."""

_SPEC = re.compile(r"(?:(?P<name>[^=:@]+)=)?(?P<kind>python|timm|torchvision|onnx):(?P<what>[^@]+?)(?:@(?P<checkpoint>.+))?")
_FACTORY = re.compile(r"(?P<target>.+):(?P<factory>[A-Za-z_]\w*)")


@dataclass(frozen=True)
class AnchorSpec:
    """Where an anchor comes from, as the user wrote it in `text`.

    `target` is the file or module for python, the file for onnx, the model's name otherwise; `factory` is empty but for python.
    `checkpoint` None means the weights that the library publishes for the model, for python those the factory returns, for onnx those in
    the file; `random` means random weights instead.
    """

    kind: Kind
    target: str
    factory: str
    checkpoint: Path | None
    name: str
    text: str
    random: bool = False

    @classmethod
    def parse(cls, text: str) -> "AnchorSpec":
        """Read a specification. Raises SpecError if it has none of the forms in FORMS or its name is not allowed in a bundle."""
        matched = _SPEC.fullmatch(text.strip())
        if matched is None:
            raise SpecError(f"anchor {text!r} cannot be read; allowed are {FORMS}")
        kind, target, factory = matched["kind"], matched["what"], ""
        if kind == "python":
            parts = _FACTORY.fullmatch(target)
            if parts is None:
                raise SpecError(f"anchor {text!r} names no factory; allowed are {FORMS}")
            target, factory = parts["target"], parts["factory"]
        if kind == "onnx" and matched["checkpoint"]:
            raise SpecError(f"anchor {text!r}: an ONNX file holds its weights, it takes no checkpoint")
        title = Path(target).stem if kind == "onnx" else target
        default = re.sub(r"[^A-Za-z0-9.+-]+", "-", factory or title).strip("-.+")
        name = matched["name"] or default
        try:
            check(Name, name)
        except FieldError as error:
            raise SpecError(
                f"anchor {text!r} cannot be called {name!r}: a name has letters, digits and . _ ~ + -, at most 100; put ANCHOR= in front"
            ) from error
        random = matched["checkpoint"] == RANDOM
        checkpoint = Path(matched["checkpoint"]).expanduser() if matched["checkpoint"] and not random else None
        return cls(kind, target, factory, checkpoint, name, text.strip(), random)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Anchor:
    """A loaded anchor: float32, on the CPU, in eval mode; takes (B, *input_shape) float32 and returns (B, classes) float32.

    From an ONNX file `module` is an `OnnxModule`, which ONNX Runtime runs without gradients.
    """

    name: str
    source: str
    module: nn.Module
    input_shape: tuple[int, int, int]
    preprocessing: Preprocessing | None


def load_anchor(spec: AnchorSpec, input_shape: tuple[int, int, int] | None = None) -> Anchor:
    """Build the model, load its weights and try it once on a blank image.

    `input_shape` is (C, H, W); models of timm and torchvision know their own, and timm's are built for another one where they can be.
    Raises SpecError if the model cannot be built, its weights cannot be loaded or downloaded, no input shape is known, or it does not map a
    batch of such images to a row of scores each.
    """
    state = read_state(spec.checkpoint) if spec.checkpoint is not None else None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module: nn.Module
        own_shape: tuple[int, int, int] | None
        if spec.kind == "onnx":
            (module, own_shape), preprocessing = read_onnx(Path(spec.target).expanduser(), input_shape), None
        elif spec.kind == "torchvision":
            module, preprocessing, own_shape = _from_torchvision(spec, state)
        elif spec.kind == "timm":
            module, preprocessing, own_shape = _from_timm(spec, state, input_shape)
        else:
            module, preprocessing, own_shape = _from_python(spec), None, None
    if state is not None:
        fit_state(module, state, f"checkpoint {spec.checkpoint}")
    module = module.float().cpu().eval()
    shape = input_shape or own_shape
    if shape is None:
        raise SpecError(f"anchor {spec.text!r} does not say what images it takes: give --input, --mean and --std")
    _try(spec, module, shape)
    return Anchor(spec.name, spec.text, module, shape, preprocessing)


def _try(spec: AnchorSpec, module: nn.Module, shape: tuple[int, int, int]) -> None:
    images = torch.zeros(2, *shape)
    try:
        with torch.no_grad():
            scores = module(images)
    except Exception as error:  # a model may fail in any way on images it was not made for
        raise SpecError(f"anchor {spec.text!r} does not take images of shape {shape}: {_told(error)}") from error
    if not isinstance(scores, Tensor) or scores.ndim != 2 or scores.shape[0] != 2 or scores.dtype != torch.float32:
        got = f"{scores.dtype} {tuple(scores.shape)}" if isinstance(scores, Tensor) else type(scores).__name__
        raise SpecError(f"anchor {spec.text!r} must answer 2 images with float32 scores of shape (2, classes), not {got}")
    if not bool(torch.isfinite(scores).all()):
        raise SpecError(f"anchor {spec.text!r} answers a blank image with scores that are not finite; are its weights damaged?")


def _from_timm(
    spec: AnchorSpec, state: Mapping[str, Tensor] | None, input_shape: tuple[int, int, int] | None
) -> tuple[nn.Module, Preprocessing | None, tuple[int, int, int]]:
    timm = _library("timm")
    if not spec.target.startswith(("hf-hub:", "hf_hub:", "local-dir:")) and not timm.is_model(spec.target):
        raise SpecError(f"timm has no model {spec.target!r}{_similar(spec.target, timm.list_models())}")
    options: dict[str, Any] = {"pretrained": state is None and not spec.random}
    if input_shape is not None and input_shape[0] != 3:
        options["in_chans"] = input_shape[0]
    sized = {**options, "img_size": input_shape[1:]} if input_shape is not None else options

    def build(**more: Any) -> nn.Module:
        try:
            return _built(spec, timm.create_model, spec.target, **sized, **more)
        except SpecError as error:
            # Networks that take any size have no such argument.
            if "img_size" in sized and isinstance(error.__cause__, TypeError) and "img_size" in str(error.__cause__):
                return _built(spec, timm.create_model, spec.target, **options, **more)
            raise

    module = _with_classes(build, state)
    config = timm.data.resolve_model_data_config(module)
    channels, height, width = (int(size) for size in config["input_size"])
    return module, _preprocessing(config, input_shape[0] if input_shape else channels), (channels, height, width)


def _preprocessing(config: Mapping[str, Any], channels: int) -> Preprocessing | None:
    """From a data configuration as timm writes it; None for images that are neither grey nor in colour."""
    if channels not in (1, 3):
        return None
    # A colour network that was rebuilt for grey images keeps the configuration of three channels.
    mean, std = ((sum(values) / len(values),) if channels == 1 else tuple(values) for values in (config["mean"], config["std"]))
    return Preprocessing(
        mode="L" if channels == 1 else "RGB",
        resize="squash" if config.get("crop_mode") == "squash" else "shortest",
        interpolation=config["interpolation"] if config["interpolation"] in ("nearest", "bilinear", "bicubic") else "bicubic",
        crop_pct=min(1.0, float(config["crop_pct"])),
        mean=mean,
        std=std,
    )


def _from_torchvision(
    spec: AnchorSpec, state: Mapping[str, Tensor] | None
) -> tuple[nn.Module, Preprocessing | None, tuple[int, int, int] | None]:
    models = _library("torchvision").models
    if spec.target not in models.list_models():
        raise SpecError(f"torchvision has no model {spec.target!r}{_similar(spec.target, models.list_models())}")
    weights = "DEFAULT" if state is None and not spec.random else None

    def build(**more: Any) -> nn.Module:
        with warnings.catch_warnings():
            # GoogLeNet and Inception announce that they will initialise themselves otherwise; their weights come from elsewhere.
            warnings.filterwarnings("ignore", "The default weight initialization", FutureWarning)
            return _built(spec, models.get_model, spec.target, weights=weights, **more)

    module = _with_classes(build, state)
    transforms = models.get_model_weights(spec.target).DEFAULT.transforms()
    size = getattr(transforms, "crop_size", None)
    if size is None or len(size) != 1:  # detectors and video networks, which are no anchors
        return module, None, None
    config = {
        "interpolation": transforms.interpolation.value,
        "crop_pct": size[0] / transforms.resize_size[0],
        "mean": transforms.mean,
        "std": transforms.std,
    }
    return module, _preprocessing(config, 3), (3, size[0], size[0])


def _from_python(spec: AnchorSpec) -> nn.Module:
    where = Path(spec.target).expanduser()
    is_file = where.suffix == ".py" or len(where.parts) > 1
    if is_file and not where.is_file():
        raise SpecError(f"anchor {spec.text!r}: there is no file {where}")
    with importable(where.resolve().parent if is_file else Path.cwd()):
        try:
            code = run_file(where) if is_file else importlib.import_module(spec.target)
        except Exception as error:  # the user's code may raise anything
            raise SpecError(f"anchor {spec.text!r}: {spec.target} cannot be imported: {_told(error)}") from error
        factory = getattr(code, spec.factory, None)
        if not callable(factory):
            public = [name for name, value in vars(code).items() if callable(value) and not name.startswith("_")]
            raise SpecError(f"anchor {spec.text!r}: {spec.target} has no function {spec.factory!r}{_similar(spec.factory, public)}")
        return _built(spec, factory)


def _built(spec: AnchorSpec, factory: Callable[..., Any], *args: Any, **options: Any) -> nn.Module:
    try:
        module = factory(*args, **options)
    except Exception as error:  # model code and download code raise anything
        downloading = options.get("pretrained") or options.get("weights")
        hint = "; its published weights could not be loaded: give a file with @CHECKPOINT, or @random for a trial" if downloading else ""
        raise SpecError(f"anchor {spec.text!r} cannot be built: {_told(error)}{hint}") from error
    if not isinstance(module, nn.Module):
        raise SpecError(f"anchor {spec.text!r}: {spec.factory}() must return a torch.nn.Module, not {type(module).__name__}")
    return module


def _with_classes(build: Callable[..., nn.Module], state: Mapping[str, Tensor] | None) -> nn.Module:
    """Build for as many classes as the checkpoint has: a model tuned on other classes differs from the published one in its last layer."""
    module = build()
    heads = [name for name, layer in module.named_modules() if isinstance(layer, nn.Linear | nn.Conv2d)]
    if state is None or not heads:
        return module
    weight = f"{heads[-1]}.weight"
    if weight not in state or state[weight].shape[0] == module.get_parameter(weight).shape[0]:
        return module
    return build(num_classes=state[weight].shape[0])


def _library(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except (ImportError, RuntimeError) as error:
        _forget(name)
        raise SpecError(
            f"{name} cannot be imported beside torch {torch.__version__}: {_told(error)}; "
            f"install {name} and the torchvision made for this version of torch"
        ) from error


def _forget(name: str) -> None:
    """A half-imported library would fail differently, and less clearly, the next time."""
    for module in [module for module in sys.modules if module.partition(".")[0] in (name, "torchvision")]:
        del sys.modules[module]


def _similar(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=3)
    return f"; did you mean {' or '.join(near)}?" if near else ""


def _told(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}" if text else type(error).__name__
