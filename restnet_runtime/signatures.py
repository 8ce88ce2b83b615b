"""Signatures: who vouches for a bundle. Ed25519 over the bytes of manifest.json, kept in signatures.json beside it.

The manifest has the SHA-256 of every other file, so whoever signs it signs all that the reader reads. A signature counts for a
bundle in which there is nothing else: a file that the manifest does not list is not covered, and refused.

Needs `cryptography` (extra `sign`), and only where signatures are made or asked for.
"""

import base64
import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

from restnet_runtime.errors import BundleError, KeyFileError, SignatureError
from restnet_runtime.fields import FieldError, Limits, read
from restnet_runtime.files import read_file
from restnet_runtime.manifest import MANIFEST_FILE, Manifest

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

SIGNATURES_FILE = "signatures.json"
FORMAT: Final = "restnet-signatures"
MAX_SIGNATURES = 16
_MAX_FILE_BYTES = 64 * 2**10
_MAX_KEY_BYTES = 16 * 2**10


@dataclass(frozen=True, kw_only=True)
class Signature:
    """One signature. key: the fingerprint of the public key that it can be checked with; signature: base64 of its 64 bytes."""

    key: Annotated[str, Limits(pattern=r"^SHA256:[A-Za-z0-9+/]{43}$")]
    signature: Annotated[str, Limits(pattern=r"^[A-Za-z0-9+/]{86}==$")]


@dataclass(frozen=True, kw_only=True)
class SignaturesFile:
    """signatures.json, version 1: one signature by each key."""

    format: Literal["restnet-signatures"]
    version: Literal[1]
    signatures: Annotated[tuple[Signature, ...], Limits(min_length=1, max_length=MAX_SIGNATURES)]

    def text(self) -> str:
        """As it is written."""
        made = [{"key": one.key, "signature": one.signature} for one in self.signatures]
        return json.dumps({"format": self.format, "version": self.version, "signatures": made}, indent=1) + "\n"


class Keyring:
    """Public keys of which one must have signed a bundle."""

    def __init__(self, keys: Sequence["Ed25519PublicKey"]) -> None:
        self._keys = {fingerprint(key): key for key in keys}

    @classmethod
    def load(cls, files: Iterable[Path]) -> "Keyring":
        """From files in PEM (`BEGIN PUBLIC KEY`). Raises `KeyFileError` for one that holds no such key, or none at all."""
        keys = [load_public_key(file) for file in files]
        if not keys:
            raise KeyFileError("no public key is given: one at least must be, or nothing could be trusted")
        return cls(keys)

    @property
    def fingerprints(self) -> tuple[str, ...]:
        return tuple(self._keys)

    def check(self, root: Path, manifest: bytes) -> str:
        """The fingerprint of the key that has signed `manifest`, the bytes of manifest.json of the bundle at `root`.

        Raises `SignatureError` where none of these keys has, and `BundleError` for a file of signatures that cannot be read.
        """
        from cryptography.exceptions import InvalidSignature

        asked = ", ".join(self._keys)
        if not os.path.lexists(root / SIGNATURES_FILE):
            raise SignatureError(str(root), f"is not signed: there is no {SIGNATURES_FILE} in it, and a signature by {asked} is required")
        known = [one for one in read_signatures(root).signatures if one.key in self._keys]
        if not known:
            others = ", ".join(one.key for one in read_signatures(root).signatures)
            raise SignatureError(SIGNATURES_FILE, f"is of {others}, and a signature by {asked} is required")
        for one in known:
            try:
                self._keys[one.key].verify(base64.b64decode(one.signature), manifest)
            except InvalidSignature:
                continue
            return one.key
        names = ", ".join(one.key for one in known)
        raise SignatureError(MANIFEST_FILE, f"is not what {names} has signed: it was changed since, or the signature is another bundle's")


def check_covered(root: Path, manifest: Manifest) -> None:
    """Raise `SignatureError` for a file or directory that the manifest, and so the signature, does not cover."""
    files = {MANIFEST_FILE, SIGNATURES_FILE, *manifest.files}
    if SIGNATURES_FILE in manifest.files:
        raise SignatureError(MANIFEST_FILE, f"lists {SIGNATURES_FILE}, which no signature can cover")
    folders = {name.rpartition("/")[0] for name in files} - {""}
    for folder in ("", *sorted(folders)):
        with os.scandir(root / folder) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                name = f"{folder}/{entry.name}" if folder else entry.name
                if name not in files and name not in folders:
                    raise SignatureError(name, "is not listed in the signed manifest: nothing vouches for it, take it away")


def read_signatures(root: Path) -> SignaturesFile:
    """signatures.json of the bundle at `root`. Raises `BundleError`."""
    raw = read_file(root, SIGNATURES_FILE, at_most=_MAX_FILE_BYTES)
    try:
        found = read(SignaturesFile, json.loads(raw.decode()))
    except FieldError as error:
        raise BundleError(SIGNATURES_FILE, f"{error.where or 'the document'}: {error.message}") from error
    except (ValueError, RecursionError) as error:
        raise BundleError(SIGNATURES_FILE, f"is not JSON: {error}") from error
    return found


def fingerprint(key: "Ed25519PublicKey") -> str:
    """`SHA256:` and the base64 of the digest of the key as DER, by which people and messages name it."""
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    der = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return "SHA256:" + base64.b64encode(hashlib.sha256(der).digest()).decode().rstrip("=")


def load_public_key(file: Path) -> "Ed25519PublicKey":
    """Raises `KeyFileError` for a file that holds no public key of Ed25519 in PEM."""
    raw = read_key(file)
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    if b"PRIVATE KEY" in raw:
        raise KeyFileError(f"{file}: is a private key, which must not leave whoever signs: give the public one ({file}.pub)")
    key: Any
    try:
        key = load_pem_public_key(raw)
    except Exception as error:  # cryptography raises several kinds, by version
        raise KeyFileError(f"{file}: holds no public key in PEM (-----BEGIN PUBLIC KEY-----)") from error
    if not isinstance(key, Ed25519PublicKey):
        raise KeyFileError(f"{file}: is a key of another kind: Ed25519 is what bundles are signed with")
    return key


def read_key(file: Path) -> bytes:
    """The bytes of a key's file. Raises `KeyFileError` where it cannot be read, or `cryptography` is missing."""
    require_cryptography()
    if file.is_dir():
        raise KeyFileError(f"{file}: is a directory, not a key: name the bundle before the options that take keys")
    try:
        with file.open("rb") as opened:
            return opened.read(_MAX_KEY_BYTES)
    except OSError as error:
        raise KeyFileError(f"{file}: cannot be read: {error.strerror or error}") from error


def require_cryptography() -> None:
    """Raises `KeyFileError` where it is not installed."""
    try:
        import cryptography  # noqa: F401
    except ImportError as error:
        raise KeyFileError("signatures need cryptography, which is not installed: pip install 'restnet-runtime[sign]'") from error
