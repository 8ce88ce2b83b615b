"""Signing: keys are made, and bundles signed with them. For whoever makes bundles; a device only checks (`signatures.py`)."""

import base64
import hashlib
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from restnet_runtime.bundle import Bundle
from restnet_runtime.errors import BundleError, KeyFileError
from restnet_runtime.files import read_file
from restnet_runtime.manifest import MANIFEST_FILE
from restnet_runtime.replacement import write_atomically
from restnet_runtime.signatures import (
    FORMAT,
    MAX_SIGNATURES,
    SIGNATURES_FILE,
    Signature,
    SignaturesFile,
    fingerprint,
    read_key,
    read_signatures,
    require_cryptography,
)

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey


def make_keys(file: Path) -> str:
    """Write a new private key to `file`, for its owner alone, and the public one to `FILE.pub`, both in PEM. Returns the fingerprint.

    Raises `KeyFileError` where one of them is there already, or cannot be written.
    """
    require_cryptography()
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

    public = Path(f"{file}.pub")
    for one in (file, public):
        if os.path.lexists(one):
            raise KeyFileError(f"{one}: is there already, and a key is not replaced: choose another name, or move it away")
    key = Ed25519PrivateKey.generate()
    _write_new(file, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()), 0o600)
    _write_new(public, key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo), 0o644)
    return fingerprint(key.public_key())


def load_private_key(file: Path) -> "Ed25519PrivateKey":
    """Raises `KeyFileError` for a file that holds no private key of Ed25519 in PEM."""
    raw = read_key(file)
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    if b"PRIVATE KEY" not in raw:
        raise KeyFileError(f"{file}: holds no private key in PEM (-----BEGIN PRIVATE KEY-----)")
    key: Any
    try:
        key = load_pem_private_key(raw, password=None)
    except TypeError as error:
        raise KeyFileError(f"{file}: is protected by a password: `openssl pkey -in {file}` writes it without one") from error
    except Exception as error:  # cryptography raises several kinds, by version
        raise KeyFileError(f"{file}: holds no private key that can be read") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise KeyFileError(f"{file}: is a key of another kind: Ed25519 is what bundles are signed with")
    return key


def sign_bundle(bundle: Bundle, key: "Ed25519PrivateKey") -> str:
    """Sign a bundle that was opened and so checked; signatures by other keys stay. Returns the fingerprint.

    Raises `BundleError` where its manifest is no longer what was opened, a file of signatures is damaged, or there are too many in it.
    """
    manifest = read_file(bundle.path, MANIFEST_FILE, at_most=2**30)
    if hashlib.sha256(manifest).hexdigest() != bundle.digest:
        raise BundleError(MANIFEST_FILE, "has been changed since the bundle was opened")
    name = fingerprint(key.public_key())
    others = read_signatures(bundle.path).signatures if os.path.lexists(bundle.path / SIGNATURES_FILE) else ()
    made = Signature(key=name, signature=base64.b64encode(key.sign(manifest)).decode())
    signatures = (*(one for one in others if one.key != name), made)
    if len(signatures) > MAX_SIGNATURES:
        raise BundleError(SIGNATURES_FILE, f"has {len(others)} signatures already, the most that there may be: remove it to begin anew")
    for left in bundle.path.glob(f".{SIGNATURES_FILE}.*"):  # of a run that was killed: nothing would vouch for it
        left.unlink(missing_ok=True)
    text = SignaturesFile(format=FORMAT, version=1, signatures=signatures).text()
    write_atomically(bundle.path / SIGNATURES_FILE, text.encode())
    return name


def signer(file: Path) -> Callable[[Bundle], object]:
    """What signs bundles with the key in `file`, which is read now: what is wrong with it is known before minutes of work."""
    key = load_private_key(file)
    return lambda bundle: sign_bundle(bundle, key)


def _write_new(file: Path, data: bytes, mode: int) -> None:
    try:
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    except OSError as error:
        raise KeyFileError(f"{file}: cannot be written: {error.strerror or error}") from error
    try:
        with os.fdopen(descriptor, "wb") as opened:
            opened.write(data)
            opened.flush()
            os.fsync(opened.fileno())
    except OSError as error:
        with suppress(OSError):
            file.unlink()
        raise KeyFileError(f"{file}: cannot be written: {error.strerror or error}") from error
