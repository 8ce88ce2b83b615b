"""`restnet-export`: what it prints, writes, returns and refuses."""

import importlib.util
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from restnet_export.cli import main, parser
from restnet_export.objectives import Objective
from restnet_export.settings import TuneSettings
from restnet_runtime import __version__
from restnet_runtime.bundle import open_bundle
from restnet_runtime.manifest import Preprocessing

NETS = """
import torch
from torch import nn


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x):
        return x + torch.relu(self.conv(x))


class Net(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.stem = nn.Conv2d(1, width, 3, padding=1)
        self.blocks = nn.Sequential(Block(width), Block(width))
        self.head = nn.Linear(width, 3)

    def forward(self, x):
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


def tiny():
    return Net(3)


def small():
    return Net(5)
"""


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A command line that makes a bundle, but for `--out DIR`."""
    root = tmp_path_factory.mktemp("cli")
    (root / "nets.py").write_text(NETS)
    rng = np.random.default_rng(0)
    np.savez(root / "data.npz", x=rng.integers(0, 256, (30, 8, 8, 1), dtype=np.uint8), y=np.arange(30) % 3)
    anchors = [f"mini=python:{root / 'nets.py'}:tiny", f"python:{root / 'nets.py'}:small"]
    inputs = ["--input", "8", "--mean", "0.5", "--std", "0.25"]
    return ["--anchors", *anchors, "--data", f"npz:{root / 'data.npz'}", *inputs, "--rule", "sn-net", "--finetune", "none"]


def changed(line: list[str], option: str, *values: str) -> list[str]:
    """The line with other values for an option."""
    start = line.index(option)
    end = next((index for index in range(start + 1, len(line)) if line[index].startswith("--")), len(line))
    return [*line[:start], option, *values, *line[end:]]


def test_it_prints_its_way_and_the_routes(line: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "names.txt").write_text("cat\n\ndog\nhen\n", encoding="utf-8")
    out = tmp_path / "bundle"
    options = [
        "--kernel",
        "1",
        "--samples",
        "7",
        "--seed",
        "3",
        "--max-routes",
        "3",
        "--classes",
        str(tmp_path / "names.txt"),
        "--resize",
        "shortest",
        "--interpolation",
        "nearest",
        "--crop-pct",
        "0.8",
        "--out",
        str(out),
    ]
    assert main([*line, *options]) == 0
    told, errors = capsys.readouterr()
    assert errors == ""
    bundle = open_bundle(out)
    manifest = bundle.manifest
    assert manifest.classes == ("cat", "dog", "hen")
    assert (manifest.provenance.fitted_on, manifest.provenance.scored_on, manifest.provenance.seed) == (7, 6, 3)
    assert [anchor.name for anchor in manifest.anchors] == ["mini", "small"]
    assert manifest.preprocessing == Preprocessing(
        mode="L", resize="shortest", interpolation="nearest", crop_pct=0.8, mean=(0.5,), std=(0.25,)
    )
    lines = told.splitlines()
    assert lines[0] == "anchor mini: 4 blocks in stages of 2"
    assert "rule sn-net: 2 stitched routes through 2 stitching layers" in lines
    assert lines[-1] == f"wrote {out}"
    typed = json.loads((out / "report" / "settings.json").read_text())["command"]
    assert shlex.split(typed) == ["restnet-export", *line, *options]
    listed = [re.split(r"  +", row)[0] for row in lines[lines.index(next(row for row in lines if row.startswith("---"))) + 1 : -1]]
    assert listed == [route.name for route in sorted(bundle.routes, key=lambda route: route.macs)]
    assert len(listed) == 3


@pytest.mark.parametrize(
    ("option", "values", "told"),
    [
        ("--data", ["mnist"], "data 'mnist' is not one of: imagefolder:DIR"),
        ("--anchors", ["resnet18"], "anchor 'resnet18' cannot be read"),
        ("--input", ["8", "8", "8"], "--input 8 8 8: give height and width"),
        ("--input", ["0"], "--input 0: give height and width"),
        ("--mean", ["0.5", "0.5"], "give one number each (grey) or three (RGB)"),
        ("--mean", ["nan"], "--mean [nan]"),
        ("--std", ["0"], "deviations above 0"),
        ("--std", ["inf"], "--std [inf]"),
        ("--samples", ["0"], "--samples 0 must be at least 4"),
        ("--samples", ["3"], "--samples 3 must be at least 4: similarity"),
        ("--steps", ["3"], "--steps does nothing with --finetune none: leave it out"),
        ("--lr", ["0.1"], "--lr does nothing with --finetune none"),
        ("--ignore-labels", [], "--ignore-labels does nothing with --finetune none"),
        ("--teacher", ["large"], "--teacher does nothing with --finetune none"),
        ("--crop-pct", ["0"], "--crop-pct 0.0 must be above 0 and at most 1"),
        ("--crop-pct", ["nan"], "--crop-pct nan must be above 0"),
        ("--max-routes", ["0"], "--max-routes 0 must be at least 2: the anchors are among them"),
        ("--seed", ["-1"], "--seed -1 must be at least 0"),
        ("--stages", ["7"], "stages (7,) must be different and from 0..0"),
        ("--stride", ["0"], "stride 0 must be at least 1"),
        ("--stitch-kernel", ["2"], "--stitch-kernel 2: an odd number"),
        ("--stitch-kernel", ["-1"], "--stitch-kernel -1: an odd number, 1 or more"),
        ("--classes", ["/nowhere/names.txt"], "--classes /nowhere/names.txt cannot be read"),
        ("--out", ["/proc/bundle"], "/proc/bundle cannot be written: "),
        ("--out", [f"{__file__}/deep/bundle"], "cannot be written: [Errno 20] Not a directory"),
        ("--out", [__file__], "is in the way"),
    ],
)
def test_one_line_and_exit_status_2(
    line: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str, values: list[str], told: str
) -> None:
    whole = [*line, "--out", str(tmp_path / "bundle"), "--quiet"]
    assert main(changed(whole, option, *values) if option in whole else [*whole, option, *values]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("restnet-export: ")
    assert told in err
    assert err.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("option", ["--kernel", "--stride", "--stages"])
@pytest.mark.parametrize("rule", ["restnet", "both-ways", "all"])
def test_options_of_another_rule(line: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], rule: str, option: str) -> None:
    assert main([*changed(line, "--rule", rule), option, "1", "--out", str(tmp_path / "bundle")]) == 2
    assert f"{option} does nothing with --rule {rule}: leave it out, or give --rule sn-net" in capsys.readouterr().err


@pytest.mark.parametrize("rule", ["sn-net", "both-ways", "all"])
def test_ends_belong_to_restnet(line: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], rule: str) -> None:
    assert main([*changed(line, "--rule", rule), "--ends", "2", "--out", str(tmp_path / "bundle")]) == 2
    assert f"--ends does nothing with --rule {rule}: leave it out, or give --rule restnet" in capsys.readouterr().err


def test_no_ends(line: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*changed(line, "--rule", "restnet"), "--ends", "0", "--out", str(tmp_path / "bundle")]) == 2
    assert "restnet: ends 0 must be at least 1" in capsys.readouterr().err


def test_selecting_what_is_not_limited(line: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*line, "--select", "kl", "--out", str(tmp_path / "bundle")]) == 2
    assert "--select does nothing with --rule sn-net and no limit: leave it out, or give --max-routes" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("rule", "options", "told"),
    [
        ("both-ways", [], "rule both-ways: 3 stitched routes through 3 stitching layers"),
        ("all", ["--select", "windows", "--max-routes", "3", "--nearest"], "rule all: 2 stitched routes through 2 stitching layers"),
        ("restnet", ["--select", "kl", "--no-nearest"], "rule restnet: 1 stitched routes through 1 stitching layers"),
    ],
)
def test_the_other_rules(
    line: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], rule: str, options: list[str], told: str
) -> None:
    assert main([*changed(line, "--rule", rule), *options, "--out", str(tmp_path / "bundle")]) == 0
    assert told in capsys.readouterr().out.splitlines()
    assert open_bundle(tmp_path / "bundle").manifest.provenance.rule == rule


@pytest.mark.parametrize(
    ("mode", "options", "told"),
    [
        ("stitch", ["--steps", "0"], "finetune: --steps is 0, allowed is at least 1"),
        ("stitch", ["--held-out", "0"], "finetune: --held-out is 0.0, allowed is above 0 and below 1"),
        ("stitch", ["--rank", "4"], "--rank does nothing with --finetune stitch"),
        ("lora", ["--lr-weights", "1e-3"], "--lr-weights does nothing with --finetune lora"),
        ("stitch", ["--loss", "kl=1"], "--loss 'kl=1': give NAME=WEIGHT, NAME one of labels, soft, hard, features"),
        ("stitch", ["--loss", "soft=-1"], "--loss 'soft=-1': give NAME=WEIGHT"),
        ("stitch", ["--loss", "soft=0"], "one of the losses labels, soft and hard must have a weight above 0"),
        ("stitch", ["--loss", "labels=1", "--blend"], "a loss of labels, which blended images have not: leave out --blend or the loss"),
        ("full", ["--loss", "labels=1", "--ignore-labels"], "a loss of labels where labels are not to be used"),
    ],
)
def test_tuning_options(
    line: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], mode: str, options: list[str], told: str
) -> None:
    assert main([*changed(line, "--finetune", mode), *options, "--out", str(tmp_path / "bundle")]) == 2
    assert told in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "told"), [("a\nb\na\n", "has 3 names, 2 of them different"), ("\n", "has 0 names"), ("\xff", "cannot be read")]
)
def test_class_names_that_are_none(line: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, told: str) -> None:
    (tmp_path / "names.txt").write_bytes(text.encode("latin-1"))
    assert main([*line, "--classes", str(tmp_path / "names.txt"), "--out", str(tmp_path / "bundle")]) == 2
    assert told in capsys.readouterr().err


@pytest.mark.parametrize("left_out", ["--mean", "--std", "--input"])
def test_mean_and_std_and_input_go_together(line: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], left_out: str) -> None:
    start = line.index(left_out)
    assert main([*line[:start], *line[start + 2 :], "--out", str(tmp_path / "bundle")]) == 2
    assert "--mean and --std go together and need --input" in capsys.readouterr().err


def test_a_size_alone_is_of_colour_images(line: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    start = line.index("--mean")
    assert main([*line[:start], *line[start + 4 :], "--out", str(tmp_path / "bundle")]) == 2
    assert "does not take images of shape (3, 8, 8)" in capsys.readouterr().err


def test_nothing_about_input_at_all(line: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    start = line.index("--input")
    assert main([*line[:start], *line[start + 6 :], "--out", str(tmp_path / "bundle")]) == 2
    assert "give --input, --mean and --std" in capsys.readouterr().err


def test_it_signs_what_it_writes_and_a_key_that_is_none_is_known_at_once(
    line: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("cryptography")
    from restnet_runtime.signatures import Keyring
    from restnet_runtime.signing import make_keys

    name = make_keys(tmp_path / "k")
    assert main([*line, "--out", str(tmp_path / "none"), "--sign", str(tmp_path / "k.pub")]) == 2
    told, errors = capsys.readouterr()
    assert told == ""
    assert errors.startswith(f"restnet-export: {tmp_path / 'k.pub'}: holds no private key")
    assert main([*line, "--out", str(tmp_path / "bundle"), "--sign", str(tmp_path / "k")]) == 0
    assert open_bundle(tmp_path / "bundle", keys=Keyring.load([tmp_path / "k.pub"])).signed_by == name


def test_a_device_install_says_what_is_missing(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in ("torch", "tqdm") else found(name))
    assert main(["--anchors", "timm:a", "timm:b", "--data", "digits", "--out", "x"]) == 2
    assert capsys.readouterr().err == (
        "restnet-export: this needs torch, tqdm, which a device install leaves out: pip install 'restnet-runtime[export]'\n"
    )


def test_help_needs_no_torch_and_version_is_the_packages() -> None:
    code = "import sys; sys.modules['torch'] = None; from restnet_export.cli import main; sys.exit(main())"
    told = subprocess.run([sys.executable, "-c", code, "--help"], capture_output=True, text=True, check=True)
    for option in (
        "--anchors",
        "--data",
        "--val",
        "--out",
        "--rule",
        "--nearest",
        "--select",
        "--finetune",
        "--max-routes",
        "--input",
        "--mean",
        "--std",
        "--resize",
        "--interpolation",
        "--crop-pct",
        "--classes",
    ):
        assert option in told.stdout
    version = subprocess.run([sys.executable, "-c", code, "--version"], capture_output=True, text=True, check=True)
    assert version.stdout.startswith(f"restnet-export {__version__}\npython ")


def test_what_argparse_refuses(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--anchors", "a", "b", "--data", "digits", "--out", "x", "--rule", "best"])
    assert ended.value.code == 2
    assert "invalid choice: 'best'" in capsys.readouterr().err


def test_help_names_the_defaults_that_tuning_has() -> None:
    shown = {action.dest: match[1] for action in parser()._actions if (match := re.search(r"\(default: ([\w.]+)\)$", action.help or ""))}
    own, objective = TuneSettings(), Objective()
    for name in ("steps", "batch_size", "accumulate", "lr", "held_out", "shift", "lr_weights", "stitch_steps", "sampling", "drawn"):
        assert type(getattr(own, name))(shown[name]) == getattr(own, name)
    assert float(shown["temperature"]) == objective.temperature


def test_half_precisions_are_refused_with_the_reason(line: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*line, "--precision", "fp32", "fp16", "--out", str(tmp_path / "bundle")]) == 2
    assert "--precision fp32 fp16: fp16 cannot be written: ONNX Runtime's CPU provider" in capsys.readouterr().err
    assert not (tmp_path / "bundle").exists()


def test_int8_alone_is_refused(line: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is made of fp32 and judged by it."""
    assert main([*line, "--precision", "int8", "--out", str(tmp_path / "bundle")]) == 2
    assert "--precision int8: fp32 is always among them; give --precision fp32 int8" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*line, "--precision", "int4", "--out", str(tmp_path / "bundle")])
    assert not (tmp_path / "bundle").exists()
