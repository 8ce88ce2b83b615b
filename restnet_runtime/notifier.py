"""Notifier: the service manager is told how the server is doing, by the protocol of sd_notify(3), without a library.

    READY=1      once a route is loaded, so that whoever is started after the server can ask it
    WATCHDOG=1   while the server answers (`heartbeat.py`); otherwise systemd ends it and starts it again
    STATUS=      the route that serves, for `systemctl status`
    STOPPING=1   from the signal on, while requests in flight are answered

Other managers that set NOTIFY_SOCKET are told the same.
"""

import logging
import os
import socket
from collections.abc import MutableMapping

log = logging.getLogger(__name__)


class Notifier:
    """Sends datagrams to the service manager. It never raises and never blocks: the server must run without being heard."""

    def __init__(self, address: str, watchdog_s: float | None = None) -> None:
        """address: of a datagram socket, a path, or `@NAME` in the abstract namespace. watchdog_s: a sign of life is due so often."""
        self.watchdog_s = watchdog_s
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        self._socket.setblocking(False)

    @classmethod
    def from_environment(cls, environ: MutableMapping[str, str] = os.environ) -> "Notifier | None":
        """As NOTIFY_SOCKET, WATCHDOG_USEC and WATCHDOG_PID have it; `None` where nobody listens.

        They are taken out of `environ`: a process that is started from here does not speak for the server.
        """
        address, usec, pid = (environ.pop(name, "") for name in ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"))
        if not address.startswith(("/", "@")):
            if address:
                log.warning("NOTIFY_SOCKET is %r, no socket of this machine: nobody is told how the server does", address)
            return None
        wanted = usec.isdecimal() and int(usec) > 0 and pid in ("", str(os.getpid()))
        return cls(address, int(usec) / 1e6 if wanted else None)

    def send(self, *fields: str) -> bool:
        """Fields `NAME=VALUE`, in one datagram. Returns whether it was sent: not while the manager has a full queue, or nobody listens."""
        try:
            self._socket.sendto("\n".join(fields).encode(), self._address)
        except OSError as error:
            log.debug("the service manager was not told %s: %s", fields, error)
            return False
        return True

    def stopping(self) -> None:
        """Also from a handler of signals."""
        self.send("STOPPING=1", "STATUS=stopping: requests in flight are answered, no new ones are taken")

    def close(self) -> None:
        self._socket.close()
