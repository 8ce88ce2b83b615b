import math
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from restnet_export.anchors import Anchor, AnchorSpec, load_anchor
from restnet_export.checkpoints import fit_state, read_state
from restnet_runtime.errors import SpecError
from restnet_runtime.manifest import Preprocessing
from restnet_runtime.preprocess import Preprocessor

CODE = """
import torch
from torch import nn
from neighbour import WIDTH

class Net(nn.Module):
    def __init__(self, classes=10):
        super().__init__()
        self.conv = nn.Conv2d(3, WIDTH, 3)
        self.norm = nn.BatchNorm2d(WIDTH)
        self.drop = nn.Dropout(0.5)
        self.fc = nn.Linear(WIDTH, classes)

    def forward(self, x):
        return self.fc(self.drop(torch.relu(self.norm(self.conv(x))).mean((2, 3))))

class Maps(Net):
    def forward(self, x):
        return self.conv(x)

class Pair(Net):
    def forward(self, x):
        return super().forward(x), x

def small():
    return Net()

def damaged():
    net = Net()
    net.fc.weight.data[0, 0] = float("nan")
    return net

def broken():
    raise ValueError("no such width")

def number():
    return 7
"""


@pytest.fixture
def code(tmp_path):
    (tmp_path / "neighbour.py").write_text("WIDTH = 6\n")
    (tmp_path / "nets.py").write_text(CODE)
    return tmp_path / "nets.py"


def load(text: str, shape: tuple[int, int, int] | None = None) -> Anchor:
    return load_anchor(AnchorSpec.parse(text), shape)


@pytest.mark.parametrize(
    ("text", "kind", "target", "factory", "checkpoint", "name"),
    [
        ("timm:resnet18", "timm", "resnet18", "", None, "resnet18"),
        ("timm:deit_tiny_patch16_224@w/best.pth", "timm", "deit_tiny_patch16_224", "", "w/best.pth", "deit-tiny-patch16-224"),
        ("timm:resnet18.a1_in1k", "timm", "resnet18.a1_in1k", "", None, "resnet18.a1-in1k"),
        ("timm:hf-hub:timm/resnet18.a1_in1k", "timm", "hf-hub:timm/resnet18.a1_in1k", "", None, "hf-hub-timm-resnet18.a1-in1k"),
        ("torchvision:swin_t@a@b.pt", "torchvision", "swin_t", "", "a@b.pt", "swin-t"),
        ("python:models/net.py:small_net@/w/net.pt", "python", "models/net.py", "small_net", "/w/net.pt", "small-net"),
        ("python:my.models.net:small", "python", "my.models.net", "small", None, "small"),
        ("tiny=timm:resnet18@./random", "timm", "resnet18", "", "random", "tiny"),
        (" large=python:net.py:build ", "python", "net.py", "build", None, "large"),
    ],
)
def test_specs_are_read(text, kind, target, factory, checkpoint, name):
    spec = AnchorSpec.parse(text)
    assert (spec.kind, spec.target, spec.factory, spec.name, spec.text) == (kind, target, factory, name, text.strip())
    assert (None if spec.checkpoint is None else spec.checkpoint.as_posix()) == checkpoint
    assert not spec.random


def test_random_stands_for_random_weights():
    spec = AnchorSpec.parse("timm:resnet18@random")
    assert spec.random
    assert spec.checkpoint is None


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "cannot be read"),
        ("resnet18", "cannot be read"),
        ("keras:resnet18", "cannot be read"),
        ("timm:", "cannot be read"),
        ("timm:resnet18@", "cannot be read"),
        ("python:net.py", "names no factory"),
        ("python:net.py:not a name", "names no factory"),
        ("a>b=timm:resnet18", "cannot be called 'a>b'"),
        ("a[0]=timm:resnet18", r"cannot be called 'a\[0\]'"),
        ("a b=timm:resnet18", "cannot be called 'a b'"),
        ("timm:" + "x" * 101, "cannot be called"),
        ("timm:///", "cannot be called ''"),
    ],
)
def test_unreadable_specs_are_refused(text, told):
    with pytest.raises(SpecError, match=told):
        AnchorSpec.parse(text)


def wrap_plain(state):
    return state


def wrap_state_dict(state):
    return {"state_dict": state, "epoch": 3}


def wrap_model(state):
    return {"model": {f"module.{key}": value for key, value in state.items()}, "optimizer": {}}


def wrap_old(state):
    return {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}


def wrap_half(state):
    return {key: value.half() if value.is_floating_point() else value for key, value in state.items()}


@pytest.mark.parametrize("wrap", [wrap_plain, wrap_state_dict, wrap_model, wrap_old, wrap_half])
def test_a_checkpoint_of_the_users_own_network(code, tmp_path, wrap):
    trained = load(f"python:{code}:small", (3, 8, 8)).module
    state = {key: value + 1 if value.is_floating_point() else value for key, value in trained.state_dict().items()}
    torch.save(wrap(state), tmp_path / "net.pt")
    anchor = load(f"mine=python:{code}:small@{tmp_path / 'net.pt'}", (3, 8, 8))
    assert anchor.name == "mine"
    assert anchor.source.endswith("net.pt")
    assert anchor.input_shape == (3, 8, 8)
    assert anchor.preprocessing is None
    assert not any(part.training for part in anchor.module.modules())
    for key, value in anchor.module.state_dict().items():
        if value.is_floating_point():
            torch.testing.assert_close(value, state[key], atol=2e-3, rtol=2e-3)
            assert value.dtype == torch.float32


@pytest.mark.usefixtures("code")
def test_a_safetensors_checkpoint_of_a_module_on_the_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path / "elsewhere"))
    before = list(sys.path)
    first = load("python:nets:small", (3, 8, 8))
    save_file({key: value * 2 for key, value in first.module.state_dict().items()}, tmp_path / "net.safetensors")
    second = load(f"python:nets:small@{tmp_path / 'net.safetensors'}", (3, 8, 8))
    assert torch.equal(second.module.fc.weight, first.module.fc.weight * 2)
    assert sys.path == before


def test_two_files_of_one_name_stay_apart(tmp_path):
    for folder, width in (("a", 4), ("b", 5)):
        (tmp_path / folder).mkdir()
        text = f"from torch import nn\ndef net():\n    return nn.Sequential(nn.Flatten(), nn.Linear(12, {width}))\n"
        (tmp_path / folder / "model.py").write_text(text)
    widths = [load(f"python:{tmp_path / folder / 'model.py'}:net", (3, 2, 2)).module[1].out_features for folder in "aba"]
    assert widths == [4, 5, 4]


NEIGHBOURS = """
import sys
from torch import nn
from layers import WIDTH
from parts.linear import Linear
sys.path.append("elsewhere")
def net():
    import late
    return nn.Sequential(nn.Flatten(), Linear(12, WIDTH + late.MORE))
"""


@pytest.mark.parametrize("package", [True, False], ids=["package", "folder"])
def test_two_files_import_each_their_own_neighbours(tmp_path, package):
    for folder, width in (("a", 8), ("b", 16)):
        parts = tmp_path / folder / "parts"
        parts.mkdir(parents=True)
        (tmp_path / folder / "net.py").write_text(NEIGHBOURS)
        (tmp_path / folder / "layers.py").write_text(f"WIDTH = {width}")
        (tmp_path / folder / "late.py").write_text(f"MORE = {width // 8}")
        (parts / "linear.py").write_text(f"from torch import nn\nclass Linear(nn.Linear):\n    width = {width}")
        if package:
            (parts / "__init__.py").touch()
    path, modules = list(sys.path), set(sys.modules)
    layers = [load(f"python:{tmp_path / folder / 'net.py'}:net", (3, 2, 2)).module[1] for folder in "aba"]
    assert [(layer.out_features, layer.width) for layer in layers] == [(9, 8), (18, 16), (9, 8)]
    assert sys.path == path
    assert not {"layers", "late", "parts", "parts.linear"} & (set(sys.modules) - modules)


def test_libraries_of_an_environment_in_the_same_folder_stay_loaded(tmp_path, monkeypatch):
    library = tmp_path / "venv" / "library_of_a_test"
    library.mkdir(parents=True)
    (library / "__init__.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path / "venv"))
    (tmp_path / "net.py").write_text("import library_of_a_test\nfrom torch import nn\ndef net():\n    return nn.Flatten()\n")
    load(f"python:{tmp_path / 'net.py'}:net", (3, 2, 2))
    assert sys.modules.pop("library_of_a_test").__path__ == [str(library)]


def test_random_weights_are_the_same_each_time_and_disturb_nothing(code):
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first, second = (load(f"python:{code}:small@random", (3, 8, 8)).module.state_dict() for _ in range(2))
    assert torch.equal(torch.rand(1), expected)
    assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        ("python:{folder}/absent.py:small", "there is no file"),
        ("python:absent_module:small", "cannot be imported: ModuleNotFoundError"),
        ("python:{folder}/wrong.py:small", "cannot be imported: SyntaxError"),
        ("python:{code}:smal", "has no function 'smal'; did you mean small"),
        ("python:{code}:CODE", "has no function 'CODE'"),
        ("python:{code}:broken", "cannot be built: ValueError: no such width"),
        ("python:{code}:number", "must return a torch.nn.Module, not int"),
        ("python:{code}:Maps", r"scores of shape \(2, classes\), not torch.float32 \(2, 6, 6, 6\)"),
        ("python:{code}:Pair", r"scores of shape \(2, classes\), not tuple"),
        ("python:{code}:damaged", "not finite"),
        ("python:{code}:small@{folder}/absent.pt", "does not exist"),
    ],
)
def test_what_the_users_code_can_get_wrong(code, spec, told):
    (code.parent / "wrong.py").write_text("def small(:\n")
    with pytest.raises(SpecError, match=told):
        load(spec.format(code=code, folder=code.parent), (3, 8, 8))


def test_images_the_network_does_not_take(code):
    with pytest.raises(SpecError, match=r"does not take images of shape \(1, 8, 8\): RuntimeError"):
        load(f"python:{code}:small", (1, 8, 8))
    with pytest.raises(SpecError, match="give --input, --mean and --std"):
        load(f"python:{code}:small")


class Opaque:
    pass


def test_a_checkpoint_saved_on_a_gpu_loads_without_one(tmp_path, monkeypatch):
    state = nn.Linear(3, 2).state_dict()
    with monkeypatch.context() as patch:
        patch.setattr(torch.serialization, "location_tag", lambda _: "cuda:0")  # as torch.save writes it on a GPU
        torch.save(state, tmp_path / "net.pt")
    if not torch.cuda.is_available():
        with pytest.raises(RuntimeError, match="on a CUDA device"):
            torch.load(tmp_path / "net.pt", weights_only=True)
    read = read_state(tmp_path / "net.pt")
    assert all(value.device.type == "cpu" and torch.equal(value, state[key]) for key, value in read.items())
    assert set(read) == set(state)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ({"state_dict": {"weight": torch.zeros(2)}, "args": Opaque()}, "code from a checkpoint is never run"),
        ([torch.zeros(2)], "holds no state dict but list"),
        ({}, "holds no state dict but dict"),
        ({"weight": torch.zeros(2), "epoch": 3}, "epoch are no tensors"),
        (b"not a checkpoint", "cannot be read|damaged"),
    ],
)
def test_files_that_hold_no_state_dict(tmp_path, content, told):
    path = tmp_path / "weights.pt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(SpecError, match=told):
        read_state(path)


def test_a_damaged_safetensors_file(tmp_path):
    (tmp_path / "net.safetensors").write_bytes(b"\x00" * 20)
    with pytest.raises(SpecError, match=r"net.safetensors cannot be read"):
        read_state(tmp_path / "net.safetensors")


def test_keys_that_do_not_fit_are_named():
    net = nn.Sequential(*(nn.Linear(3, 3) for _ in range(4)))
    state = net.state_dict()
    state = {key: value for key, value in state.items() if not key.startswith("0.")} | {"head.weight": torch.zeros(2)}
    state["1.weight"] = torch.zeros(5, 3)
    with pytest.raises(SpecError) as told:
        fit_state(net, state, "checkpoint x.pt")
    assert str(told.value) == (
        "checkpoint x.pt does not fit Sequential: missing: 0.weight, 0.bias; unexpected: head.weight; "
        "mis-shaped: 1.weight (5, 3) instead of (3, 3)"
    )
    with pytest.raises(SpecError, match=r"missing: 0.weight, 0.bias, 1.weight, 1.bias and 4 more$"):
        fit_state(net, {}, "checkpoint x.pt")


def test_a_checkpoint_of_another_network_is_told_from_one_that_lacks_keys():
    with pytest.raises(SpecError, match=r"does not fit Linear: none of its 2 keys is known there: it has a, b, wanted are weight, bias$"):
        fit_state(nn.Linear(2, 2), {"a": torch.zeros(1), "b": torch.zeros(1)}, "checkpoint x.pt")


def test_timm_brings_its_preprocessing():
    anchor = load("timm:deit_tiny_patch16_224@random", (3, 64, 64))
    assert anchor.name == "deit-tiny-patch16-224"
    assert anchor.input_shape == (3, 64, 64)
    assert anchor.module(torch.zeros(1, 3, 64, 64)).shape == (1, 1000)
    assert anchor.preprocessing == Preprocessing(
        mode="RGB", resize="shortest", interpolation="bicubic", crop_pct=0.9, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)
    )


def test_timm_knows_its_own_input_size():
    anchor = load("timm:mobilenetv3_small_050@random")
    assert anchor.input_shape == (3, 224, 224)


def test_timm_with_a_checkpoint_of_other_classes_and_channels(tmp_path):
    import timm

    tuned = timm.create_model("resnet10t", num_classes=7, in_chans=1)
    torch.save({"state_dict": tuned.state_dict()}, tmp_path / "tuned.pth")
    anchor = load(f"timm:resnet10t@{tmp_path / 'tuned.pth'}", (1, 32, 48))
    assert anchor.preprocessing.mode == "L"
    assert anchor.preprocessing.mean == pytest.approx((0.449,))
    images = torch.randn(2, 1, 32, 48)
    with torch.no_grad():
        torch.testing.assert_close(anchor.module(images), tuned.eval()(images))


def test_timm_loads_published_weights_through_its_hub_code(tmp_path):
    import timm

    published = timm.create_model("resnet10t", num_classes=5)
    timm.models.save_for_hf(published, tmp_path / "published", model_config={"num_classes": 5})
    anchor = load(f"published=timm:local-dir:{tmp_path / 'published'}", (3, 32, 32))
    assert torch.equal(anchor.module.fc.weight, published.fc.weight)


def test_timm_without_a_network(tmp_path, monkeypatch):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(
        SpecError, match=r"cannot be built.*published weights could not be loaded: give a file with @CHECKPOINT, or @random"
    ):
        load("timm:resnet18")


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        ("timm:resnet19@random", "timm has no model 'resnet19'; did you mean resnet1"),
        ("torchvision:resnet19@random", "torchvision has no model 'resnet19'; did you mean resnet18"),
        ("timm:qqqqqqqq@random", "timm has no model 'qqqqqqqq'$"),
        ("timm:levit_128s@random", r"does not take images of shape \(3, 60, 60\): RuntimeError"),
    ],
)
def test_models_a_library_does_not_have(spec, told):
    with pytest.raises(SpecError, match=told):
        load(spec, (3, 60, 60))


def test_torchvision_with_a_checkpoint_of_other_classes(tmp_path):
    import torchvision

    tuned = torchvision.models.mnasnet0_5(num_classes=4)
    torch.save(tuned.state_dict(), tmp_path / "tuned.pt")
    anchor = load(f"torchvision:mnasnet0_5@{tmp_path / 'tuned.pt'}", (3, 32, 32))
    assert anchor.name == "mnasnet0-5"
    assert torch.equal(anchor.module.classifier[1].weight, tuned.classifier[1].weight)


@pytest.mark.parametrize(
    ("name", "input_size", "resized", "interpolation", "mean"),
    [
        ("resnet18", 224, 256, "bilinear", 0.485),
        ("mobilenet_v3_small", 224, 256, "bilinear", 0.485),
        ("shufflenet_v2_x1_5", 224, 232, "bilinear", 0.485),
        ("efficientnet_b1", 240, 255, "bilinear", 0.485),
    ],
)
def test_torchvision_brings_its_preprocessing(name, input_size, resized, interpolation, mean):
    anchor = load(f"torchvision:{name}@random")
    assert anchor.input_shape == (3, input_size, input_size)
    own = anchor.preprocessing
    assert (own.mode, own.resize, own.interpolation, own.mean[0]) == ("RGB", "shortest", interpolation, mean)
    assert math.floor(input_size / own.crop_pct) == resized  # as the device computes it
    assert load(f"torchvision:{name}@random", (3, 64, 64)).input_shape == (3, 64, 64)


def test_the_torchvision_pixels_are_those_of_its_transforms():
    import torchvision
    from PIL import Image

    anchor = load("torchvision:resnet18@random")
    pixels = np.random.default_rng(0).integers(0, 256, (300, 420, 3), dtype=np.uint8)
    expected = torchvision.models.ResNet18_Weights.DEFAULT.transforms()(Image.fromarray(pixels))
    found = Preprocessor(anchor.preprocessing, anchor.input_shape).from_pixels(pixels)[0]
    assert found == pytest.approx(expected.numpy(), abs=1e-5)


def test_torchvision_checkpoints_are_not_bent_to_fit(tmp_path):
    import torchvision

    torch.save(torchvision.models.mnasnet0_75(num_classes=4).state_dict(), tmp_path / "other.pt")
    with pytest.raises(SpecError, match=r"does not fit MNASNet: mis-shaped: layers"):
        load(f"torchvision:mnasnet0_5@{tmp_path / 'other.pt'}", (3, 32, 32))


def test_a_torchvision_made_for_another_torch(tmp_path, monkeypatch):
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "__init__.py").write_text(
        "import torchvision.part\nraise RuntimeError('operator torchvision::nms does not exist')\n"
    )
    (tmp_path / "torchvision" / "part.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        monkeypatch.delitem(sys.modules, name)
    for _ in range(2):
        with pytest.raises(
            SpecError, match=r"torchvision cannot be imported beside torch .*nms does not exist; install torchvision and the torchvision"
        ):
            load("torchvision:resnet18@random", (3, 32, 32))
    assert "torchvision.part" not in sys.modules


def test_a_published_checkpoint_from_data_parallel_training(shared):
    spec = f"python:{shared}/anchors/cifar_resnet.py:resnet20@{shared}/data/checkpoints/resnet20-12fca82f.th"
    anchor = load(spec, (3, 32, 32))
    stored = torch.load(shared / "data/checkpoints/resnet20-12fca82f.th", map_location="cpu", weights_only=True)["state_dict"]
    assert torch.equal(anchor.module.linear.bias, stored["module.linear.bias"])
    assert anchor.name == "resnet20"
