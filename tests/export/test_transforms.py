"""What the device does to an image is what timm's own evaluation transforms do, to one level of 8 bits."""

import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from restnet_runtime.manifest import Preprocessing
from restnet_runtime.preprocess import Preprocessor

timm = pytest.importorskip("timm")
transforms_imagenet_eval = pytest.importorskip("timm.data.transforms_factory").transforms_imagenet_eval

COLOUR = Preprocessing(mode="RGB", mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
LEVEL = 1 / 255


def encoded(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


def photo(height: int, width: int, seed: int = 0) -> Image.Image:
    """Smooth colours with some noise, as photos have."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[0:height, 0:width]
    waves = [127 + 90 * np.sin(rows / (7 + 3 * c) + c) * np.cos(columns / (11 - 2 * c)) for c in range(3)]
    pixels = np.stack(waves, -1) + rng.normal(0, 12, (height, width, 3))
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


@pytest.mark.parametrize("size", [(256, 320), (320, 256), (61, 97), (97, 1), (500, 40)], ids=str)
@pytest.mark.parametrize(
    ("mode", "crop_pct", "interpolation"), [("center", 0.875, "bicubic"), ("center", 0.95, "bilinear"), ("squash", 1.0, "bicubic")]
)
def test_timm_evaluation_transform(size, mode, crop_pct, interpolation):
    image = photo(*size)
    transform = transforms_imagenet_eval(
        32, crop_pct=crop_pct, crop_mode=mode, interpolation=interpolation, mean=COLOUR.mean, std=COLOUR.std
    )
    preprocessing = replace(COLOUR, resize="squash" if mode == "squash" else "shortest", crop_pct=crop_pct, interpolation=interpolation)
    got = Preprocessor(preprocessing, (3, 32, 32)).from_files([encoded(image)])
    expected = transform(image).numpy()
    assert np.abs(got[0] - expected).max() <= 1.01 * LEVEL / min(COLOUR.std)
    assert np.abs(got[0] - expected).mean() < 1e-3


@pytest.mark.parametrize(
    "architecture",
    [
        "resnet18.a1_in1k",  # 224, 0.95, bicubic
        "resnet50.tv_in1k",  # 224, 0.875, bilinear
        "mobilenetv2_100.ra_in1k",
        "tf_efficientnet_lite0.in1k",  # mean and std of one half
        "deit_tiny_patch16_224.fb_in1k",  # 0.9
        "mobilenetv3_small_100.lamb_in1k",
        "vit_tiny_patch16_384.augreg_in21k_ft_in1k",  # 384, 1.0
        "inception_v3.tv_in1k",  # 299
        "convnext_tiny.fb_in22k_ft_in1k_384",  # 384, squash
        "eva02_tiny_patch14_336.mim_in22k_ft_in1k",  # 336, CLIP's mean and std
    ],
)
def test_the_data_configurations_of_timm(architecture):
    """What timm's own configuration of a model says is done as timm's own transform does it, to one level of 8 bits."""
    config = timm.data.resolve_data_config(pretrained_cfg=timm.get_pretrained_cfg(architecture).to_dict())
    if config["crop_mode"] not in ("center", "squash") or config["interpolation"] not in ("nearest", "bilinear", "bicubic"):
        pytest.skip(f"{config['crop_mode']}, {config['interpolation']} is not what the bundle format has")
    mean, std, shape = config["mean"], config["std"], config["input_size"]
    chosen = {name: config[name] for name in ("crop_pct", "crop_mode", "interpolation", "mean", "std")}
    transform = transforms_imagenet_eval(shape[1:], **chosen)
    preprocessing = Preprocessing(
        mode="RGB",
        mean=tuple(mean),
        std=tuple(std),
        resize="squash" if config["crop_mode"] == "squash" else "shortest",
        crop_pct=config["crop_pct"],
        interpolation=config["interpolation"],
    )
    reader = Preprocessor(preprocessing, shape)
    for seed, size in enumerate([(480, 640), (640, 427), (375, 500), (200, 180)]):
        image = photo(*size, seed)
        for source in (image, image.convert("L").convert("RGB")):
            expected = transform(source).numpy()
            got = reader.from_files([encoded(source)])[0]
            assert got.shape == expected.shape
            assert np.abs(got - expected).max() <= 1.01 * LEVEL / min(std)
            assert np.abs(got - expected).mean() < 1e-3
