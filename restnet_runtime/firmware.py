"""What a Raspberry Pi's firmware says of its throttling: the bits of `vcgencmd get_throttled`.

Read from the file that the firmware's driver shows, which costs as much as any file. Kernels without it are asked through the command
`vcgencmd`, which takes milliseconds: it is started at one reading, ten seconds apart, and its answer is taken at a later one, so that no
reading waits for it. Bits: Raspberry Pi documentation, computers/os.html, `get_throttled`.
"""

import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from restnet_runtime.small_files import Turns, read_text

BITS = ("under-voltage", "frequency capped by the firmware", "throttled by the firmware", "soft temperature limit")
"""Bits 0 to 3: now; the same at 16 to 19: since boot."""
_SINCE_BOOT = 16


@dataclass(frozen=True)
class Firmware:
    """now, since_boot: what is, or was, the matter; empty: nothing. `None`: there is no such firmware, or it does not tell."""

    now: tuple[str, ...] | None = None
    since_boot: tuple[str, ...] | None = None


class FirmwareBits:
    """Looks for the file and the command once, when it is made, under `root`."""

    def __init__(self, root: Path = Path("/"), command_every: int = 10) -> None:
        platform = root / "sys" / "devices" / "platform"
        # soc/soc:firmware up to the Raspberry Pi 4, soc@ADDRESS/... where the device tree names the bus by its address
        self._file = next(iter(sorted(platform.glob("soc*/*firmware*/get_throttled"))), None)
        model = read_text(root / "proc" / "device-tree" / "model") or ""
        path = f"{root / 'usr' / 'bin'}:{root / 'bin'}:{root / 'opt' / 'vc' / 'bin'}"
        self._command = shutil.which("vcgencmd", path=path) if self._file is None and "Raspberry Pi" in model else None
        self._due = Turns(command_every)
        self._running: subprocess.Popen[str] | None = None
        self._said: int | None = None

    def read(self) -> Firmware:
        """The file's bits as they are; the command's as it said last."""
        if self._file is not None:
            bits = parse_bits(read_text(self._file))
        elif self._command is not None:
            bits = self._ask(self._command)
        else:
            return Firmware()
        return Firmware() if bits is None else Firmware(_names(bits), _names(bits >> _SINCE_BOOT))

    def close(self) -> None:
        """End a command that has not answered."""
        running, self._running = self._running, None
        if running is not None:
            running.kill()
            running.communicate()

    def _ask(self, command: str) -> int | None:
        running, due = self._running, self._due()
        if running is not None and running.poll() is not None:
            self._said, self._running = parse_bits(running.communicate()[0]), None
        elif running is not None and due:  # ten seconds without an answer
            self._said = None
            self.close()
        if due and self._running is None:
            try:
                arguments = [command, "get_throttled"]
                self._running = subprocess.Popen(
                    arguments, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
                )
            except OSError:
                self._said = None
        return self._said


def parse_bits(text: str | None) -> int | None:
    """`throttled=0x50005` of the command, `50005` of the file: hexadecimal."""
    match = re.fullmatch(r"(?:throttled=)?(?:0x)?([0-9a-fA-F]{1,8})", (text or "").strip())
    return int(match[1], 16) if match else None


def _names(bits: int) -> tuple[str, ...]:
    return tuple(name for index, name in enumerate(BITS) if bits >> index & 1)
