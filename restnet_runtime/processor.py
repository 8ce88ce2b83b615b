"""Processor: its name and the instructions that matter for speed, from `/proc/cpuinfo`.

ARM kernels give numbers instead of a name: `CPU implementer` and `CPU part`, as in Arm's MIDR_EL1 and util-linux's lscpu-arm.c.
"""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from restnet_runtime.small_files import read_text

_DOT_PRODUCT = ("asimddp", "avx_vnni", "avx512_vnni")
"""Multiply 8-bit integers and add up in one instruction: without one, int8 gains little."""
_X86 = "sse4_1 avx avx2 fma f16c avx512f avx_vnni avx512_vnni avx512_bf16 avx512_fp16 amx_int8 amx_bf16"
_ARM = "asimd neon asimdhp asimddp i8mm bf16 sve sve2 sme"
_NAMED = tuple(f"{_X86} {_ARM}".split())
_PARTS = {
    ("0x41", "0xd03"): "Cortex-A53",
    ("0x41", "0xd04"): "Cortex-A35",
    ("0x41", "0xd05"): "Cortex-A55",
    ("0x41", "0xd07"): "Cortex-A57",
    ("0x41", "0xd08"): "Cortex-A72",
    ("0x41", "0xd09"): "Cortex-A73",
    ("0x41", "0xd0a"): "Cortex-A75",
    ("0x41", "0xd0b"): "Cortex-A76",
    ("0x41", "0xd0c"): "Neoverse-N1",
    ("0x41", "0xd0d"): "Cortex-A77",
    ("0x41", "0xd40"): "Neoverse-V1",
    ("0x41", "0xd41"): "Cortex-A78",
    ("0x41", "0xd42"): "Cortex-A78AE",
    ("0x41", "0xd44"): "Cortex-X1",
    ("0x41", "0xd46"): "Cortex-A510",
    ("0x41", "0xd47"): "Cortex-A710",
    ("0x41", "0xd49"): "Neoverse-N2",
    ("0x41", "0xd4f"): "Neoverse-V2",
    ("0x4e", "0x003"): "Denver 2",
    ("0x4e", "0x004"): "Carmel",
}


@dataclass(frozen=True)
class Processor:
    """What `/proc/cpuinfo` tells.

    name:         `Cortex-A76`, or `4x Cortex-A78, 2x Cortex-A55` where the cores differ; `None` where it says nothing
    features:     of the instructions that matter for speed, those that every core has
    dot_product:  whether one of them is a dot product of 8-bit integers; `None` where no instructions are named
    virtual:      it is a virtual machine's, where the processor says so (x86)
    """

    name: str | None
    features: tuple[str, ...]
    dot_product: bool | None
    virtual: bool


def read_processor(cpuinfo: str | Path = "/proc/cpuinfo") -> Processor:
    """Never raises for what the file holds."""
    cores = [fields for block in (read_text(cpuinfo) or "").split("\n\n") if (fields := _fields(block))]
    told = [set((core.get("flags") or core.get("Features") or "").split()) for core in cores]
    common = set.intersection(*(flags for flags in told if flags)) if any(told) else set[str]()
    names = [name for core in cores if (name := _name(core)) is not None]
    counts = Counter(names)
    several = ", ".join(f"{count}x {name}" for name, count in counts.items())
    return Processor(
        name=(names[0] if len(counts) == 1 else several) if names else None,
        features=tuple(feature for feature in _NAMED if feature in common),
        dot_product=any(feature in common for feature in _DOT_PRODUCT) if common else None,
        virtual="hypervisor" in common,
    )


def _fields(block: str) -> dict[str, str]:
    return {name.strip(): value.strip() for name, colon, value in (line.partition(":") for line in block.splitlines()) if colon}


def _name(core: dict[str, str]) -> str | None:
    if core.get("model name"):
        return core["model name"]
    implementer, part = core.get("CPU implementer"), core.get("CPU part")
    if implementer is None or part is None:
        return None
    return _PARTS.get((implementer.lower(), part.lower()), f"ARM processor {implementer}, part {part}")
