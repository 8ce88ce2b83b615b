"""Signatures: what is signed is served, and whatever differs from it is refused with the file and the key's fingerprint."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from restnet_export.writer import BundleSource, write_bundle
from restnet_runtime import cli, sign_cli
from restnet_runtime.bundle import Bundle, open_bundle
from restnet_runtime.errors import BundleError, KeyFileError, SignatureError

pytest.importorskip("cryptography", reason="the extra `sign` is not installed")
from restnet_runtime.signatures import MAX_SIGNATURES, SIGNATURES_FILE, Keyring, fingerprint, load_public_key, read_signatures
from restnet_runtime.signing import load_private_key, make_keys, sign_bundle, signer


@pytest.fixture
def key(tmp_path: Path) -> Path:
    make_keys(tmp_path / "release.key")
    return tmp_path / "release.key"


@pytest.fixture
def keyring(key: Path) -> Keyring:
    return Keyring.load([Path(f"{key}.pub")])


@pytest.fixture
def signed(own_family: Callable[..., Path], key: Path) -> Path:
    path = own_family()
    sign_bundle(open_bundle(path), load_private_key(key))
    return path


def refused(path: Path, keyring: Keyring) -> str:
    """Why; without a signature required, the same bundle is another question."""
    with pytest.raises(BundleError) as error:
        open_bundle(path, keys=keyring, weights_later=True)
    return str(error.value)


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def test_what_was_signed_opens_and_says_who_signed_it(signed: Path, keyring: Keyring) -> None:
    bundle = open_bundle(signed, keys=keyring, weights_later=True)
    assert bundle.signed_by == keyring.fingerprints[0]
    assert bundle.weights_checked  # a signature that says nothing of the weights would say little
    assert open_bundle(signed).signed_by is None


def test_bundle_without_signature_is_refused_with_the_key_that_is_required(own_family, keyring: Keyring) -> None:
    path = own_family()
    with pytest.raises(SignatureError) as error:
        open_bundle(path, keys=keyring)
    expected = f"{path}: is not signed: there is no signatures.json in it, and a signature by {keyring.fingerprints[0]} is required"
    assert str(error.value) == expected


def test_tampered_weights_are_refused_at_once(signed: Path, keyring: Keyring) -> None:
    flip(signed / "weights.bin")
    assert refused(signed, keyring).startswith("weights.bin: has SHA-256 ")


@pytest.mark.parametrize("name", ["segments/small.0.fp32.onnx", "report/report.html"])
def test_any_other_tampered_file_is_refused(signed: Path, keyring: Keyring, name: str) -> None:
    flip(signed / name)
    assert refused(signed, keyring).startswith(f"{name}: has SHA-256 ")


def test_tampered_manifest_is_refused_even_where_all_its_digests_are_right(signed: Path, keyring: Keyring) -> None:
    manifest = signed / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"circle"', '"square"', 1))
    open_bundle(signed)  # a sound bundle, but for who vouches for it
    name = keyring.fingerprints[0]
    expected = f"manifest.json: is not what {name} has signed: it was changed since, or the signature is another bundle's"
    assert refused(signed, keyring) == expected


def test_signature_of_another_bundle_by_the_same_key_is_refused(
    family_source: BundleSource, signed: Path, key: Path, keyring: Keyring, tmp_path: Path
) -> None:
    import dataclasses

    other = write_bundle(dataclasses.replace(family_source, name="other"), tmp_path / "other", sign=signer(key)).path
    open_bundle(other, keys=keyring)
    shutil.copy(other / SIGNATURES_FILE, signed / SIGNATURES_FILE)
    assert "is not what SHA256:" in refused(signed, keyring)


def test_signature_under_a_required_keys_name_that_it_did_not_make_is_refused(signed: Path, keyring: Keyring, tmp_path: Path) -> None:
    make_keys(tmp_path / "thief.key")
    sign_bundle(open_bundle(signed), load_private_key(tmp_path / "thief.key"))
    document = json.loads((signed / SIGNATURES_FILE).read_text())
    mine, theirs = document["signatures"]
    document["signatures"] = [{"key": mine["key"], "signature": theirs["signature"]}]
    (signed / SIGNATURES_FILE).write_text(json.dumps(document))
    assert "is not what SHA256:" in refused(signed, keyring)


def test_wrong_key_is_refused_with_both_fingerprints(signed: Path, keyring: Keyring, tmp_path: Path) -> None:
    other = make_keys(tmp_path / "other.key")
    others = Keyring.load([tmp_path / "other.key.pub"])
    assert refused(signed, others) == f"signatures.json: is of {keyring.fingerprints[0]}, and a signature by {other} is required"


def test_one_of_several_keys_is_enough_and_signatures_add_up(signed: Path, keyring: Keyring, tmp_path: Path) -> None:
    name = make_keys(tmp_path / "other.key")
    both = Keyring.load([tmp_path / "other.key.pub", tmp_path / "release.key.pub"])
    assert open_bundle(signed, keys=both).signed_by == keyring.fingerprints[0]
    sign_bundle(open_bundle(signed), load_private_key(tmp_path / "other.key"))
    assert open_bundle(signed, keys=Keyring.load([tmp_path / "other.key.pub"])).signed_by == name
    assert open_bundle(signed, keys=keyring).signed_by == keyring.fingerprints[0]
    sign_bundle(open_bundle(signed), load_private_key(tmp_path / "other.key"))
    assert len(read_signatures(signed).signatures) == 2  # once by each key


@pytest.mark.parametrize("name", ["evil.so", "segments/unlisted.onnx", "report/more.html", ".hidden"])
def test_file_that_the_manifest_does_not_list_is_refused(signed: Path, keyring: Keyring, name: str) -> None:
    (signed / name).write_text("x")
    open_bundle(signed)  # ignored, where nobody has to vouch for it
    assert refused(signed, keyring) == f"{name}: is not listed in the signed manifest: nothing vouches for it, take it away"


def test_directory_that_the_manifest_does_not_need_is_refused(signed: Path, keyring: Keyring) -> None:
    (signed / "more").mkdir()
    assert refused(signed, keyring).startswith("more: is not listed")


def test_link_in_place_of_the_signatures_is_refused(signed: Path, keyring: Keyring, tmp_path: Path) -> None:
    (signed / SIGNATURES_FILE).rename(tmp_path / "elsewhere.json")
    (signed / SIGNATURES_FILE).symlink_to(tmp_path / "elsewhere.json")
    assert refused(signed, keyring) == "signatures.json: is a link or lies behind one: links are refused"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "signatures.json: is not JSON: "),
        ("[" * 60_000, "signatures.json: is not JSON: "),
        ('{"format": "restnet-signatures", "version": 1, "signatures": []}', "signatures.json: signatures: "),
        ('{"format": "restnet-signatures", "version": 2, "signatures": []}', "signatures.json: version: "),
        (
            '{"format": "restnet-signatures", "version": 1, "signatures": [{"key": "x", "signature": "y"}]}',
            "signatures.json: signatures.0.key",
        ),
        (" " * 70_000, "signatures.json: has more than 65536 bytes"),
    ],
)
def test_damaged_signatures_are_refused(signed: Path, keyring: Keyring, text: str, reason: str) -> None:
    (signed / SIGNATURES_FILE).write_text(text)
    assert refused(signed, keyring).startswith(reason)


def test_signing_again_is_the_same_and_a_killed_runs_scratch_goes(signed: Path, key: Path, keyring: Keyring) -> None:
    before = (signed / SIGNATURES_FILE).read_bytes()
    (signed / f".{SIGNATURES_FILE}.12.abcdef01").write_text("half")
    sign_bundle(open_bundle(signed), load_private_key(key))
    assert (signed / SIGNATURES_FILE).read_bytes() == before  # Ed25519 draws nothing
    open_bundle(signed, keys=keyring)


def test_manifest_that_changed_after_it_was_checked_is_not_signed(own_family, key: Path) -> None:
    path = own_family()
    bundle = open_bundle(path)
    (path / "manifest.json").write_text((path / "manifest.json").read_text() + " ")
    with pytest.raises(BundleError, match=r"manifest\.json: has been changed since the bundle was opened"):
        sign_bundle(bundle, load_private_key(key))


def test_there_is_an_end_to_signatures(signed: Path, tmp_path: Path) -> None:
    bundle = open_bundle(signed)
    for number in range(MAX_SIGNATURES - 1):
        make_keys(tmp_path / f"{number}.key")
        sign_bundle(bundle, load_private_key(tmp_path / f"{number}.key"))
    make_keys(tmp_path / "last.key")
    with pytest.raises(BundleError, match="has 16 signatures already"):
        sign_bundle(bundle, load_private_key(tmp_path / "last.key"))


def test_keys_are_for_their_owner_and_are_not_replaced(tmp_path: Path) -> None:
    name = make_keys(tmp_path / "a.key")
    assert (tmp_path / "a.key").stat().st_mode & 0o777 == 0o600
    assert name == fingerprint(load_public_key(tmp_path / "a.key.pub"))
    before = (tmp_path / "a.key").read_bytes()
    with pytest.raises(KeyFileError, match="is there already"):
        make_keys(tmp_path / "a.key")
    assert (tmp_path / "a.key").read_bytes() == before
    with pytest.raises(KeyFileError, match="cannot be written: No such file"):
        make_keys(tmp_path / "nowhere" / "a.key")


def test_files_that_hold_no_such_key_are_refused(tmp_path: Path, key: Path) -> None:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ed25519, x25519

    public, private = tmp_path / "p.pub", tmp_path / "p.key"
    wrong = x25519.X25519PrivateKey.generate()
    encodings = serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    public.write_bytes(wrong.public_key().public_bytes(*encodings))
    formats = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    private.write_bytes(wrong.private_bytes(*formats, serialization.NoEncryption()))
    locked = tmp_path / "locked.key"
    locked.write_bytes(ed25519.Ed25519PrivateKey.generate().private_bytes(*formats, serialization.BestAvailableEncryption(b"x")))
    noise = tmp_path / "noise"
    noise.write_bytes(bytes(range(256)))
    for load, file, reason in (
        (load_public_key, key, "is a private key, which must not leave whoever signs"),
        (load_public_key, public, "is a key of another kind: Ed25519"),
        (load_public_key, noise, "holds no public key in PEM"),
        (load_public_key, tmp_path / "none", "cannot be read: No such file"),
        (load_public_key, tmp_path, "is a directory, not a key: name the bundle before"),
        (load_private_key, private, "is a key of another kind: Ed25519"),
        (load_private_key, locked, "is protected by a password"),
        (load_private_key, Path(f"{key}.pub"), "holds no private key in PEM"),
        (load_private_key, noise, "holds no private key in PEM"),
    ):
        with pytest.raises(KeyFileError) as error:
            load(file)
        assert str(error.value).startswith(f"{file}: {reason}")
    with pytest.raises(KeyFileError, match="no public key is given"):
        Keyring.load([])


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
def test_keys_of_openssl_serve_too_and_openssl_checks_our_signatures(own_family, tmp_path: Path) -> None:
    import base64

    def openssl(*arguments: object) -> bytes:
        return subprocess.run(["openssl", *map(str, arguments)], capture_output=True, check=True).stdout

    openssl("genpkey", "-algorithm", "ed25519", "-out", tmp_path / "o.key")
    openssl("pkey", "-in", tmp_path / "o.key", "-pubout", "-out", tmp_path / "o.pub")
    path = own_family()
    name = sign_bundle(open_bundle(path), load_private_key(tmp_path / "o.key"))
    der = openssl("pkey", "-pubin", "-in", tmp_path / "o.pub", "-outform", "DER")
    (tmp_path / "key.der").write_bytes(der)
    digest = openssl("dgst", "-sha256", "-binary", tmp_path / "key.der")
    assert name == "SHA256:" + base64.b64encode(digest).decode().rstrip("=")
    assert open_bundle(path, keys=Keyring.load([tmp_path / "o.pub"])).signed_by == name
    (tmp_path / "sig").write_bytes(base64.b64decode(read_signatures(path).signatures[0].signature))
    told = openssl(
        *("pkeyutl", "-verify", "-pubin", "-inkey", tmp_path / "o.pub", "-rawin"),
        *("-in", path / "manifest.json", "-sigfile", tmp_path / "sig"),
    )
    assert b"Signature Verified Successfully" in told


def test_exporters_writer_signs_before_the_bundle_takes_its_place(family_source: BundleSource, key: Path, keyring, tmp_path: Path) -> None:
    seen: list[Path] = []

    def sign(bundle: Bundle) -> None:
        seen.append(bundle.path)
        assert not (tmp_path / "out").exists()
        signer(key)(bundle)

    write_bundle(family_source, tmp_path / "out", sign=sign)
    assert seen
    assert open_bundle(tmp_path / "out", keys=keyring).signed_by == keyring.fingerprints[0]


def test_commands_make_a_key_sign_and_verify(own_family, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, key = own_family(), tmp_path / "k"
    assert sign_cli.main(["--new-key", str(key)]) == 0
    name = fingerprint(load_public_key(tmp_path / "k.pub"))
    assert capsys.readouterr().out == f"wrote {key} (private, keep it) and {key}.pub (for devices), {name}\n"
    assert sign_cli.main([str(path), "--verify", f"{key}.pub"]) == 2
    assert capsys.readouterr().err.startswith(f"restnet-sign: {path}: is not signed: ")
    assert sign_cli.main([str(path), "--key", str(key)]) == 0
    assert capsys.readouterr().out.endswith(f" by {name}\n")
    assert sign_cli.main([str(path), "--verify", f"{key}.pub"]) == 0
    assert capsys.readouterr().out == f"{path} is signed by {name}: 12 files as signed, and no others\n"
    assert cli.inspect([str(path), "--require-signature", f"{key}.pub"]) == 0
    assert capsys.readouterr().out.endswith(f"signed by {name}\n")
    flip(path / "weights.bin")
    assert sign_cli.main([str(path), "--key", str(key)]) == 2  # what is damaged is not vouched for
    assert cli.inspect([str(path), "--require-signature", f"{key}.pub"]) == 2
    assert sign_cli.main(["--key", str(key)]) == 2
    assert sign_cli.main([str(path), "--new-key", str(tmp_path / "more")]) == 2
    assert not (tmp_path / "more").exists()


def test_server_refuses_to_start_with_a_bundle_that_is_not_signed(own_family, key: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = own_family()
    assert cli.serve([str(path), "--port", "0", "--require-signature", f"{key}.pub"]) == 2
    assert f"restnet-serve: {path}: is not signed: " in capsys.readouterr().err


def test_without_cryptography_the_message_says_what_to_install(own_family, key: Path) -> None:
    code = (
        "import sys; sys.modules['cryptography'] = None; from restnet_runtime.cli import inspect; "
        f"sys.exit(inspect([{str(own_family())!r}, '--require-signature', {f'{key}.pub'!r}]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    expected = "signatures need cryptography, which is not installed: pip install 'restnet-runtime[sign]'"
    assert done.stderr == f"restnet-inspect: {expected}\n"
