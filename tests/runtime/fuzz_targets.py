"""Hostile input for a real server, and what counts as a fault of ours: a 5xx (but 503 and 504), no answer, a process that is gone.

`test_fuzz.py` tries a little of each; `make fuzz` (`scripts/fuzz.py`) tries for minutes and prints counts.
"""

import io
import json
import struct
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import numpy as np
from PIL import Image

from restnet_runtime.bundle import open_bundle
from restnet_runtime.errors import BundleError

OURS = frozenset((500, 501, 502, 505))
_FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM")
_EDGES = (0, 1, 2, 3, 4, 7, 8, 127, 128, 255, 256, 32767, 32768, 65535, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64, -1, -(2**63))
_ODD = (None, True, False, "", "x", "\x00", "é" * 50, [], {}, [[]], [[[[[[[[[1]]]]]]]]], 1e308, -0.0, 0.5, {"a": {"b": []}}, *_EDGES)


@dataclass
class Tally:
    """Inputs tried, answers by status, and the faults with the input that showed each."""

    tried: int = 0
    statuses: Counter[int] = field(default_factory=Counter)
    faults: list[tuple[str, bytes]] = field(default_factory=list)

    def answered(self, answer: httpx.Response, data: bytes) -> None:
        self.tried += 1
        self.statuses[answer.status_code] += 1
        if answer.status_code in OURS:
            self.faults.append((f"{answer.status_code}: {answer.text[:200]}", data))
        elif answer.status_code >= 400 and set(answer.json()) != {"error"}:
            self.faults.append((f"an error without its reason: {answer.text[:200]}", data))

    def __str__(self) -> str:
        fives = sum(count for status, count in self.statuses.items() if status >= 500)
        counts = ", ".join(f"{count} x {status}" for status, count in sorted(self.statuses.items()))
        return f"{self.tried} inputs, {fives} 5xx, {len(self.faults)} faults" + (f" ({counts})" if counts else "")


def real_images(seed: int = 0) -> list[bytes]:
    """Files as encoders write them: every format, grey, colour, transparent, palette, 16 bits, animated, with EXIF."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[0:24, 0:20]
    photo = np.stack([127 + 90 * np.sin(rows / (3 + c) + c) * np.cos(columns / (5 - c)) for c in range(3)], -1) + rng.normal(
        0, 9, (24, 20, 3)
    )
    colour = Image.fromarray(np.clip(photo, 0, 255).astype(np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    made: list[tuple[Image.Image, str, dict]] = [(colour, name, {}) for name in _FORMATS]
    made += [(colour.convert("L"), name, {}) for name in _FORMATS]
    made += [(colour.convert("RGBA"), name, {}) for name in ("PNG", "WEBP", "TIFF", "GIF")]
    made += [(colour.convert("P"), name, {}) for name in ("PNG", "GIF", "TIFF", "BMP")]
    made += [(colour.convert("1"), name, {}) for name in ("PNG", "TIFF", "PPM")]
    made += [(Image.fromarray((photo[..., 0] * 200).clip(0, 65535).astype(np.uint16)), name, {}) for name in ("PNG", "TIFF")]
    made += [(colour.convert("CMYK"), name, {}) for name in ("JPEG", "TIFF")]
    made += [(colour, name, {"save_all": True, "append_images": [colour.rotate(90), colour]}) for name in ("GIF", "WEBP", "TIFF", "PNG")]
    made += [(colour, name, {"exif": exif}) for name in ("JPEG", "PNG", "WEBP")]
    made += [(colour, "JPEG", {"progressive": True, "subsampling": 0}), (colour, "WEBP", {"lossless": True})]
    made += [(colour, "TIFF", {"compression": kind}) for kind in ("tiff_lzw", "tiff_deflate", "packbits", "jpeg")]
    files = []
    for image, name, options in made:
        stream = io.BytesIO()
        image.save(stream, name, **options)
        files.append(stream.getvalue())
    return files


def mutated(data: bytes, rng: np.random.Generator) -> bytes:
    """Bytes flipped, overwritten, also with values on edges, cut, doubled or lengthened: one to eight times, mostly near the beginning."""
    out = bytearray(data)
    for _ in range(int(rng.integers(1, 9))):
        if not out:
            return bytes(out)
        most = len(out) if rng.random() < 0.4 else min(len(out), 256)
        at = int(rng.integers(0, most))
        kind = int(rng.integers(0, 8))
        if kind == 0:
            out[at] ^= 1 << int(rng.integers(0, 8))
        elif kind == 1:
            out[at] = int(rng.integers(0, 256))
        elif kind == 2:
            packed = struct.pack(("<" if rng.random() < 0.5 else ">") + "I", int(rng.choice(_EDGES[:-7])) & 0xFFFFFFFF)
            out[at : at + 4] = packed
        elif kind == 3:
            del out[at:]
        elif kind == 4:
            out[at:at] = out[at : at + int(rng.integers(1, 64))]
        elif kind == 5:
            del out[at : at + int(rng.integers(1, 64))]
        elif kind == 6:
            out += bytes(rng.integers(0, 256, int(rng.integers(1, 64)), dtype=np.uint8))
        else:
            out[at : at + 16] = b"\xff" * 16 if rng.random() < 0.5 else bytes(16)
    return bytes(out)


def fuzz_images(client: httpx.Client, count: int, seed: int = 0) -> Tally:
    """Damaged files as a raw body, in a form, or as a V2 tensor of BYTES."""
    rng, tally, files = np.random.default_rng(seed), Tally(), real_images(seed)
    for index in range(count):
        data = mutated(files[index % len(files)], rng)
        way = index % 3
        if way == 0:
            answer = client.post("/predict", content=data, headers={"Content-Type": "image/png"})
        elif way == 1:
            answer = client.post("/predict", files={"image": ("x", data)})
        else:
            answer = client.post("/v2/models/shapes/infer", **_v2({"inputs": [_bytes_tensor(data)]}, struct.pack("<I", len(data)) + data))
        tally.answered(answer, data)
    return tally


def fuzz_v2(client: httpx.Client, count: int, seed: int = 0) -> Tally:
    """Binary requests whose JSON has odd values anywhere, whose lengths are off by a little or a lot, and whose bytes are damaged."""
    rng, tally = np.random.default_rng(seed), Tally()
    for _ in range(count):
        x = rng.standard_normal((int(rng.integers(1, 3)), 1, 8, 8)).astype(np.float32)
        binary = x.tobytes()
        document = {
            "id": "1",
            "parameters": {"binary_data_output": True, "budget": "1s", "timeout": 10_000_000},
            "inputs": [{"name": "input", "datatype": "FP32", "shape": list(x.shape), "parameters": {"binary_data_size": len(binary)}}],
            "outputs": [
                {"name": "logits", "parameters": {"binary_data": True}},
                {"name": "probabilities", "parameters": {"classification": 2}},
            ],
        }
        for _ in range(int(rng.integers(0, 3))):
            _make_odd(document, rng)
        off = 0
        if rng.random() < 0.3:
            off = int(rng.integers(-8, 9)) if rng.random() < 0.8 else int(rng.choice((-(10**9), 10**9)))
        if rng.random() < 0.3:
            binary = mutated(binary, rng)
        sent = _v2(document, binary, off)
        if rng.random() < 0.2:
            sent["content"] = mutated(sent["content"], rng)
        if rng.random() < 0.1:
            sent["headers"]["Content-Encoding"] = str(rng.choice(("gzip", "deflate", "br")))
        tally.answered(client.post("/v2/models/shapes/infer", **sent), sent["content"])
    return tally


def fuzz_other_bodies(client: httpx.Client, count: int, seed: int = 0) -> Tally:
    """Damaged .npy files, forms and JSON of /predict, and changes of budget and pin."""
    rng, tally = np.random.default_rng(seed), Tally()
    stream = io.BytesIO()
    np.save(stream, rng.standard_normal((1, 8, 8)).astype(np.float32))
    image = real_images(seed)[1]
    form = b"--b\r\nContent-Disposition: form-data; name=image; filename=x\r\n\r\n" + image + b"\r\n--b\r\n"
    form += b"Content-Disposition: form-data; name=top_k\r\n\r\n3\r\n--b--\r\n"
    kinds: list[tuple[str, str, str, bytes]] = [
        ("POST", "/predict", "application/x-npy", stream.getvalue()),
        ("POST", "/predict", "multipart/form-data; boundary=b", form),
        ("POST", "/predict", "application/json", json.dumps({"inputs": np.zeros((1, 8, 8)).tolist(), "top_k": 2, "budget": "1s"}).encode()),
        ("PUT", "/budget", "application/json", b'{"macs": 200000000, "latency_ms": 30.0, "memory_bytes": 1500000000}'),
        ("PUT", "/budget", "application/json", b'{"budget": "200MFLOPs,30ms,150MB,90%"}'),
        ("PUT", "/pin", "application/json", b'{"route": "small"}'),
        ("POST", "/v2/repository/index", "application/json", b'{"ready": true}'),
        ("POST", "/v2/models/shapes/infer", "application/json", json.dumps(_json_request()).encode()),
    ]
    for index in range(count):
        method, path, media, data = kinds[index % len(kinds)]
        if media == "application/json" and rng.random() < 0.5:
            document = json.loads(data)
            _make_odd(document, rng)
            data = json.dumps(document).encode()
        else:
            data = mutated(data, rng)
        tally.answered(client.request(method, path, content=data, headers={"Content-Type": media}), data)
    return tally


def fuzz_bundles(source: Path, folder: Path, count: int, seed: int = 0, use: Callable[[Path], object] = open_bundle) -> Tally:
    """Bundles with a damaged file, hashes put right in half of those whose manifest is not: opened, or refused with `BundleError`."""
    from hashlib import sha256
    from shutil import copytree, rmtree

    rng, tally = np.random.default_rng(seed), Tally()
    for _ in range(count):
        path = folder / "mutated"
        rmtree(path, ignore_errors=True)
        copytree(source, path)
        files = sorted(one for one in path.rglob("*") if one.is_file())
        victim = files[int(rng.integers(0, len(files)))] if rng.random() < 0.5 else path / "manifest.json"
        if victim.name == "manifest.json" and rng.random() < 0.7:
            document = json.loads(victim.read_bytes())
            _make_odd(document, rng)
            victim.write_text(json.dumps(document))
        else:
            victim.write_bytes(mutated(victim.read_bytes(), rng))
        if victim.name != "manifest.json" and rng.random() < 0.7:
            manifest = json.loads((path / "manifest.json").read_bytes())
            name = victim.relative_to(path).as_posix()
            data = victim.read_bytes()
            if name in manifest["files"]:
                manifest["files"][name] = {**manifest["files"][name], "bytes": len(data), "sha256": sha256(data).hexdigest()}
                (path / "manifest.json").write_text(json.dumps(manifest))
        tally.tried += 1
        try:
            use(path)
            tally.statuses[200] += 1
        except BundleError:
            tally.statuses[400] += 1
        except Exception as error:
            tally.faults.append((f"{type(error).__name__}: {error}", victim.read_bytes()))
    return tally


def _v2(document: object, binary: bytes, off: int = 0) -> dict:
    head = json.dumps(document).encode()
    headers = {"Inference-Header-Content-Length": str(len(head) + off), "Content-Type": "application/octet-stream"}
    return {"content": head + binary, "headers": headers}


def _bytes_tensor(data: bytes) -> dict:
    return {"name": "image", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": len(data) + 4}}


def _json_request() -> dict:
    return {
        "id": "a",
        "parameters": {"budget": "1s"},
        "inputs": [{"name": "pixels", "datatype": "UINT8", "shape": [1, 2, 2, 1], "data": [0, 128, 128, 255]}],
        "outputs": [{"name": "class"}],
    }


def _make_odd(document: object, rng: np.random.Generator) -> None:
    """Replace, remove or add one value somewhere inside."""
    holders: list[dict | list] = []

    def collect(value: object) -> None:
        if isinstance(value, dict | list) and value:
            holders.append(value)
            for one in value.values() if isinstance(value, dict) else value[:50]:
                collect(one)

    collect(document)
    if not holders:
        return
    holder = holders[int(rng.integers(0, len(holders)))]
    odd = _ODD[int(rng.integers(0, len(_ODD)))]
    keys = list(holder) if isinstance(holder, dict) else list(range(len(holder)))
    key = keys[int(rng.integers(0, len(keys)))]
    way = rng.random()
    if way < 0.15:
        del holder[key]
    elif way < 0.25 and isinstance(holder, dict):
        holder[f"{key}x"] = holder.pop(key)
    elif way < 0.35 and isinstance(holder, list):
        holder.append(odd)
    else:
        holder[key] = odd
