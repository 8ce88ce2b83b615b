"""What is under deploy/: the files name what there is, and options that restnet-serve takes."""

import argparse
import configparser
import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from restnet_runtime.arguments import add_engine_options, common_parser
from restnet_runtime.serve_options import add_serve_options

yaml = pytest.importorskip("yaml", reason="of the development extra")
ROOT = Path(__file__).resolve().parent.parent
DEPLOY = ROOT / "deploy"


@pytest.fixture(scope="module")
def compose_check() -> ModuleType:
    spec = importlib.util.spec_from_file_location("compose_check", ROOT / "scripts/compose_check.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def serve_parser() -> argparse.ArgumentParser:
    parser = common_parser("restnet-serve", "")
    add_engine_options(parser)
    add_serve_options(parser)
    return parser


class Unit(configparser.RawConfigParser):
    """A unit file: names keep their case, and the last of several lines counts."""

    def __init__(self) -> None:
        super().__init__(strict=False, delimiters=("=",), comment_prefixes=("#",))
        self.optionxform = str  # type: ignore[assignment, method-assign]


@pytest.fixture(scope="module")
def unit() -> Unit:
    unit = Unit()
    unit.read(DEPLOY / "systemd/restnet.service")
    return unit


def test_the_unit_is_told_what_the_server_tells(unit: Unit) -> None:
    service = unit["Service"]
    assert service["Type"] == "notify"
    assert int(service["WatchdogSec"]) > 0
    assert (service["Restart"], unit["Unit"]["StartLimitIntervalSec"]) == ("always", "0"), "it would give up one day"
    assert int(service["RestartSec"]) >= 5
    assert (service["StateDirectory"], service["CacheDirectory"]) == ("restnet", "restnet")
    assert "RESTNET_CACHE=/var/cache/restnet" in service["Environment"].split()
    assert {"MemoryMax", "CPUQuota", "TasksMax"} <= set(service)
    assert service["ExecStart"].split() == ["/opt/restnet/bin/restnet-serve", "$RESTNET_BUNDLE", "$RESTNET_OPTIONS"]


def test_options_beside_the_unit_are_options_of_the_server() -> None:
    pages = (DEPLOY / "systemd/restnet.default", ROOT / "docs/install.md")
    given = [one for page in pages for one in re.findall(r"^#?RESTNET_OPTIONS=(.*)$", page.read_text(), re.MULTILINE)]
    assert len(given) == 6
    for options in given:
        serve_parser().parse_args(shlex.split(options))


def test_compose_mounts_what_is_there_and_starts_a_server(compose_check: ModuleType) -> None:
    services = compose_check.services()
    assert set(services) == {"restnet", "prometheus", "grafana"}
    assert sum(len(compose_check.mounts(service)) for service in services.values()) == 6
    assert all(port.startswith("127.0.0.1:") for service in services.values() for port in service["ports"])
    _, _, script = services["restnet"]["command"]
    command = re.search(r"^exec restnet-serve \"\$@\" (.*) \$RESTNET_OPTIONS$", script, re.MULTILINE)
    assert command is not None
    options = [*shlex.split(command[1]), *shlex.split(services["restnet"]["environment"]["RESTNET_OPTIONS"])]
    args = serve_parser().parse_args(options)
    assert (args.host, args.port, args.read_only, args.trusted_host) == ("0.0.0.0", 8080, True, ["restnet"])
    assert services["restnet"]["read_only"] is True


@pytest.mark.parametrize(
    ("model", "mounted", "served"), [("", [], ""), ("", ["manifest.json"], "/bundle"), ("mine", [], "/bundle/mine --watch")]
)
def test_compose_serves_the_digits_a_bundle_or_one_that_is_updated(
    model: str, mounted: list[str], served: str, tmp_path: Path, compose_check: ModuleType
) -> None:
    """What the command of the file hands to restnet-serve; a link alone must not be what is mounted, so MODEL names it below."""
    (tmp_path / "bundle").mkdir()
    for name in mounted:
        (tmp_path / "bundle" / name).touch()
    shell, flag, script = compose_check.services()["restnet"]["command"]
    told = script.replace("exec restnet-serve", "exec echo").replace("/bundle", f"{tmp_path}/bundle")
    said = subprocess.run(
        [shell, flag, told], env={"MODEL": model, "PATH": os.environ["PATH"]}, capture_output=True, text=True, check=True
    ).stdout
    assert said.replace(str(tmp_path), "").partition("--host")[0].strip() == served


def test_grafana_finds_prometheus_and_the_dashboard(compose_check: ModuleType) -> None:
    compose_check.check_grafana(compose_check.services()["grafana"])
    queries = compose_check.queries()
    assert len(queries) > 10
    assert not any("$" in query for query in queries)


def test_prometheus_differs_in_the_servers_name_alone() -> None:
    own, composed = (yaml.safe_load((DEPLOY / name).read_text()) for name in ("prometheus/prometheus.yml", "compose/prometheus.yml"))
    assert own["scrape_configs"][0]["static_configs"] == [{"targets": ["localhost:8080"]}]
    assert json.loads(json.dumps(own).replace("localhost:8080", "restnet:8080")) == composed


def test_what_the_image_is_made_of_goes_to_the_builder() -> None:
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    kept = {line[1:] for line in ignored if line.startswith("!")}
    dockerfile = (ROOT / "Dockerfile").read_text()
    copied = [word for line in re.findall(r"^COPY (?!--from)(.*)$", dockerfile, re.MULTILINE) for word in line.split()[:-1]]
    assert copied
    assert all(any(word == name or word.startswith(f"{name}/") for name in kept) for word in copied)
    assert all((ROOT / word).exists() for word in copied)


@pytest.mark.parametrize(
    ("package", "device", "limit"),
    [
        ("onnxruntime", "onnxruntime>=", "onnxruntime=="),
        ("onnxruntime-gpu[cuda,cudnn]", "onnxruntime-gpu[cuda,cudnn]>=", "onnxruntime-gpu=="),
    ],
)
def test_the_image_takes_the_onnx_runtime_that_is_asked_for(
    package: str, device: str, limit: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("pyproject.toml", "constraints.txt"):
        (tmp_path / name).write_text((ROOT / name).read_text())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["requirements.py", package])
    spec = importlib.util.spec_from_file_location("requirements", ROOT / "scripts/requirements.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.main() == 0
    lines = {name: Path(name).read_text().splitlines() for name in ("device.txt", "export.txt", "limits.txt")}
    assert [line for line in lines["device.txt"] if "onnxruntime" in line] == [
        line for line in lines["device.txt"] if line.startswith(device)
    ]
    assert any(line.startswith(limit) for line in lines["limits.txt"])
    assert any(line.startswith("torch>=") for line in lines["export.txt"])
    monkeypatch.setattr(sys, "argv", ["requirements.py", "numpy"])
    with pytest.raises(SystemExit, match="no package of ONNX Runtime"):
        module.main()
