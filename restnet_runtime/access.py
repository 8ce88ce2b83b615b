"""Access: who may ask for what. Settings and the token; `guard.py` enforces them."""

import hashlib
import hmac
import ipaddress
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from restnet_runtime.errors import AccessError

Require = Literal["changes", "all"]
REQUIRE: tuple[Require, ...] = ("changes", "all")
TOKEN_VARIABLE = "RESTNET_TOKEN"
_LEAST_TOKEN, _MOST_TOKEN = 16, 1024
_TOKEN = re.compile(r"[A-Za-z0-9._~+/-]+=*")  # what RFC 6750 lets stand in the header
_ORIGIN = re.compile(r"(\*|null|[a-z][a-z0-9+.-]*://[a-z0-9.-]+(:[0-9]{1,5})?|[a-z][a-z0-9+.-]*://\[[0-9a-f:.]+\](:[0-9]{1,5})?)")
_NAME = re.compile(r"(\*\.)?[a-z0-9_-]+(\.[a-z0-9_-]+)*")
_HOST = re.compile(r"(?P<name>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(:[0-9]{1,5})?")


class Token:
    """A secret that is compared in constant time, and never shown."""

    def __init__(self, text: str) -> None:
        """Raises `AccessError` for one that is too short to be a secret, or that no header can carry."""
        if not _LEAST_TOKEN <= len(text) <= _MOST_TOKEN or not _TOKEN.fullmatch(text):
            raise AccessError(
                f"the token has {len(text)} characters: give {_LEAST_TOKEN} to {_MOST_TOKEN} of A-Z a-z 0-9 - . _ ~ + / =, "
                "as `openssl rand -hex 32` makes them"
            )
        self._digest = _digest(text.encode())

    def __repr__(self) -> str:
        return "Token(...)"

    def matches(self, given: bytes) -> bool:
        """Digests are compared, so that neither content nor length shows in the time it takes."""
        return hmac.compare_digest(self._digest, _digest(given))


def _digest(text: bytes) -> bytes:
    return hashlib.sha256(text).digest()


def read_token(path: Path) -> Token:
    """The token in a file, white space around it left out. Raises `AccessError`."""
    try:
        with path.open("rb") as file:
            data = file.read(2 * _MOST_TOKEN)
        return Token(data.decode().strip())
    except OSError as error:
        raise AccessError(f"the token file {path} cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise AccessError(f"the token file {path} is no text") from error
    except AccessError as error:
        raise AccessError(f"{path}: {error}") from error


@dataclass(frozen=True)
class Access:
    """What a server asks of its clients.

    token:          for changing state, if there is one
    require:        "all": the token is asked for everything but health checks and the files that pages are made of
    trusted_hosts:  names that may stand in Host beside addresses and localhost; `*.example.org` for all below; `None` for any. A page
                    elsewhere can make its name mean this address (DNS rebinding), but not stand in Host as anything but its name
    cors_origins:   origins whose pages may use this server, as https://example.org; `*` for all. By default only its own
    max_headers, max_header_bytes:  of one request, names and values
    """

    token: Token | None = None
    require: Require = "changes"
    trusted_hosts: tuple[str, ...] | None = ()
    cors_origins: tuple[str, ...] = ()
    max_headers: int = 64
    max_header_bytes: int = 16_384
    _cors: frozenset[str] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        for name in self.trusted_hosts or ():
            if not _NAME.fullmatch(name.lower()):
                raise AccessError(f"{name[:60]!r} is no host name: give a name without a port, or *.name for all below it")
        for origin in self.cors_origins:
            if not _ORIGIN.fullmatch(origin.lower()):
                raise AccessError(f"{origin[:60]!r} is no origin: give as https://example.org, without a path, or *")
        if self.require == "all" and self.token is None:
            raise AccessError("a token is required for everything, and there is none")
        object.__setattr__(self, "_cors", frozenset(origin.lower() for origin in self.cors_origins))

    def trusts_host(self, host: str) -> bool:
        """May that stand in the header Host?"""
        if self.trusted_hosts is None:
            return True
        found = _HOST.fullmatch(host)
        if found is None:
            return False
        name = found["name"].lower().rstrip(".")
        if is_address(name) or name == "localhost" or name.endswith(".localhost"):
            return True
        listed = [trusted.lower() for trusted in self.trusted_hosts]
        return any(name == one or (one.startswith("*.") and name.endswith(one[1:])) for one in listed)

    def shares_with(self, origin: str) -> bool:
        """May pages of that origin read the answers?"""
        return "*" in self._cors or origin.lower() in self._cors


def is_address(text: str) -> bool:
    """An IPv4 address, or an IPv6 one in brackets or not?"""
    try:
        ipaddress.ip_address(text.strip("[]"))
    except ValueError:
        return False
    return True
