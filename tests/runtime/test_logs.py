"""Lines of the log as JSON: the formatter, and the command that writes them."""

import io
import json
import logging
import re
import subprocess
import sys

import httpx
import numpy as np
from PIL import Image, features

from restnet_runtime.logs import JsonLines


def test_json_lines():
    record = logging.LogRecord("restnet", logging.WARNING, "", 0, "%s -> %s\nand more", ("a", 'b"'), None)
    record.facts = {"event": "switch", "after": 'b"'}
    line = JsonLines().format(record)
    assert "\n" not in line
    found = json.loads(line)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", found.pop("time"))
    assert found == {"level": "warning", "logger": "restnet", "message": 'a -> b"\nand more', "event": "switch", "after": 'b"'}


def test_json_lines_have_the_traceback():
    try:
        raise ValueError("here")
    except ValueError as error:
        record = logging.LogRecord("restnet", logging.ERROR, "", 0, "failed", (), (ValueError, error, error.__traceback__))
    assert "ValueError: here" in json.loads(JsonLines().format(record))["traceback"]


def torn_tiff() -> bytes:
    """One that libtiff complains of on standard error by itself."""
    stream = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)
    Image.fromarray(noise).save(stream, "TIFF", compression="tiff_lzw" if features.check("libtiff") else None)
    return stream.getvalue()[:100] + bytes(1900) + stream.getvalue()[2000:]


def test_the_command_writes_nothing_but_json_and_tells_switches_and_failures(family_path, cache_root):
    code = "import sys; from restnet_runtime.cli import serve; sys.exit(serve())"
    options = [str(family_path), "--cache", str(cache_root), "--port", "0", "--log-format", "json", "--keep-all"]
    command = [sys.executable, "-c", code, *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            process.stdout.readline()
            url = process.stdout.readline().split()[-1]
            with httpx.Client(base_url=url, trust_env=False, timeout=60) as client:
                client.get("/healthz").raise_for_status()
                while len(client.get("/status").json()["routes"]["loaded"]) < 4:
                    assert process.poll() is None
                client.put("/budget", json={"macs": client.get("/routes").json()["routes"][0]["macs"]}).raise_for_status()
                switches = client.get("/status").json()["switches"]
                assert client.post("/predict", content=b"?", headers={"X-Request-ID": "odd"}).status_code == 415
                assert client.post("/predict", content=torn_tiff(), headers={"X-Request-ID": "torn"}).status_code == 400
        finally:
            process.terminate()
            _, written = process.communicate(timeout=60)
    lines = [json.loads(line) for line in written.splitlines()]
    assert {"time", "level", "logger", "message"} <= set.intersection(*(set(line) for line in lines))
    told = [line for line in lines if line.get("event") == "switch"]
    assert [(line["before"], line["after"], line["reason"]) for line in told] == [
        (switch["before"], switch["after"], switch["reason"]) for switch in switches
    ]
    assert told[-1]["after"] == "small"
    failed = [(line["request_id"], line["status"], line["kind"]) for line in lines if line.get("event") == "request_failed"]
    assert failed == [("odd", 415, "media_type"), ("torn", 400, "image")]
