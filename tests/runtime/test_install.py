"""Installing: whatever kills it, and whenever, what DEST leads to is a whole bundle, and the next update goes well."""

import dataclasses
import importlib.util
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from restnet_export.writer import BundleSource, write_bundle
from restnet_runtime import install as install_module
from restnet_runtime import update_cli
from restnet_runtime.bundle import open_bundle
from restnet_runtime.engine import Engine
from restnet_runtime.errors import BundleError, SignatureError, UpdateError
from restnet_runtime.install import STEPS, install, list_versions, roll_back
from restnet_runtime.versions import previous_of, versions_of

SCRIPT = Path(__file__).parents[2] / "scripts" / "kill_update.py"


@pytest.fixture
def killing() -> ModuleType:
    """The script that makes the table in docs/updates.md."""
    if not SCRIPT.is_file():
        pytest.skip("the scripts are not here")
    spec = importlib.util.spec_from_file_location("kill_update", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    import sys

    sys.modules["kill_update"] = module  # dataclasses look there
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def bundles(family_source: BundleSource, tmp_path: Path) -> Callable[[str], Path]:
    """A factory of bundles that differ in their name."""

    def make(name: str, **changes: object) -> Path:
        return write_bundle(dataclasses.replace(family_source, name=name, **changes), tmp_path / "made" / name).path

    return make


@pytest.fixture
def dest(tmp_path: Path) -> Path:
    (tmp_path / "device").mkdir()
    return tmp_path / "device" / "mine"


def name_at(dest: Path) -> str:
    return open_bundle(dest).manifest.name


def names(dest: Path) -> list[str]:
    return [version.name for version in list_versions(dest)]


def test_first_second_and_back(dest: Path, bundles: Callable[[str], Path]) -> None:
    first = install(dest, bundles("a"))
    assert first.before is None
    assert first.changed
    assert dest.is_symlink()
    assert not dest.readlink().is_absolute()  # the disk may be mounted elsewhere
    second = install(dest, bundles("b"))
    assert second.before == first.bundle.path
    assert name_at(dest) == "b"
    assert name_at(versions_of(dest) / "previous") == "a"
    assert roll_back(dest).bundle.manifest.name == name_at(dest) == "a"
    assert roll_back(dest).bundle.manifest.name == name_at(dest) == "b"


def test_copy_is_independent_of_what_it_was_copied_from(dest: Path, bundles: Callable[[str], Path]) -> None:
    new = bundles("a")
    (new / "note.txt").write_text("not listed")
    install(dest, new)
    assert not (dest / "note.txt").exists()
    shutil.rmtree(new)
    assert name_at(dest) == "a"


def test_a_bundle_that_a_server_uses_stays(dest: Path, bundles: Callable[[str], Path], cache_root: Path) -> None:
    """However many others are installed meanwhile, each of which it may refuse."""
    install(dest, bundles("a"))
    engine = Engine.open(dest, cache_root=cache_root)
    for name in "bcde":
        install(dest, bundles(name))
    assert names(dest) == ["a", "c", "d", "e"]
    engine.stop()
    install(dest, bundles("f"))
    assert names(dest) == ["d", "e", "f"]


def test_rolled_back_although_an_update_was_killed_before_the_exchange(
    killing: ModuleType, dest: Path, bundles: Callable[[str], Path]
) -> None:
    install(dest, bundles("a"))
    install(dest, bundles("b"))
    for step in ("remembered", "linked"):
        assert killing.run_killed(dest, bundles("c"), step)
        assert name_at(dest) == "b"
        assert open_bundle(previous_of(dest) or dest).manifest.name == "a"
    assert roll_back(dest).bundle.manifest.name == "a"
    assert killing.run_killed(dest, bundles("c"), "swapped")
    assert name_at(dest) == "c"
    assert open_bundle(previous_of(dest) or dest).manifest.name == "a"
    assert roll_back(dest).bundle.manifest.name == "a"


def test_the_same_again_changes_nothing(dest: Path, bundles: Callable[[str], Path]) -> None:
    install(dest, bundles("a"))
    install(dest, bundles("b"))
    again = install(dest, bundles("b"))
    assert not again.changed
    assert name_at(versions_of(dest) / "previous") == "a"
    assert names(dest) == ["a", "b"]


def test_version_that_is_there_is_not_copied_and_a_damaged_one_is(dest: Path, bundles: Callable[[str], Path]) -> None:
    install(dest, bundles("a"))
    install(dest, bundles("b"))
    steps: list[str] = []
    install(dest, bundles("a"), on_step=steps.append)
    assert "copying" not in steps
    (dest / "weights.bin").write_bytes(b"")
    with pytest.raises(BundleError):
        open_bundle(dest)
    install(dest, bundles("a"))
    assert name_at(dest) == "a"


def test_damaged_version_is_none_to_go_back_to(dest: Path, bundles: Callable[[str], Path]) -> None:
    install(dest, bundles("a"))
    install(dest, bundles("b"))
    weights = dest / "weights.bin"
    raw = bytearray(weights.read_bytes())
    raw[-1] ^= 1
    weights.write_bytes(raw)
    install(dest, bundles("b"))
    assert name_at(previous_of(dest) or dest) == "a"
    (versions_of(dest) / "previous" / "manifest.json").write_text("{")
    with pytest.raises(UpdateError, match=r"the version before, must not be used: manifest\.json: is not JSON"):
        roll_back(dest)
    assert name_at(dest) == "b"


def test_directory_in_its_place_becomes_the_version_before(dest: Path, bundles: Callable[[str], Path]) -> None:
    shutil.copytree(bundles("a"), dest)
    install(dest, bundles("b"))
    assert dest.is_symlink()
    assert name_at(dest) == "b"
    assert roll_back(dest).bundle.manifest.name == "a"


def test_link_of_somebody_elses_is_replaced_and_what_it_led_to_stays(dest: Path, bundles: Callable[[str], Path]) -> None:
    theirs = bundles("a")
    dest.symlink_to(theirs)
    install(dest, bundles("b"))
    assert name_at(dest) == "b"
    assert name_at(theirs) == "a"
    assert roll_back(dest).bundle.path == theirs


def test_link_that_leads_nowhere_is_replaced(dest: Path, bundles: Callable[[str], Path]) -> None:
    dest.symlink_to("gone")
    install(dest, bundles("a"))
    assert name_at(dest) == "a"


def test_so_many_versions_stay(dest: Path, bundles: Callable[[str], Path]) -> None:
    for name in "abcd":
        install(dest, bundles(name))
    assert names(dest) == ["b", "c", "d"]
    assert [(version.current, version.previous) for version in list_versions(dest)] == [(False, False), (False, True), (True, False)]
    install(dest, bundles("e"), keep=1)
    assert names(dest) == ["d", "e"]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"classes": ("circle", "cross")}, "has 2 classes, what is there has 3"),
        ({"input_shape": (1, 8, 9)}, "takes inputs of 1x8x9, what is there takes 1x8x8"),
    ],
)
def test_another_interface_is_refused_unless_it_is_wanted(
    dest: Path, bundles: Callable[..., Path], changes: dict[str, object], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(dest, bundles("a"))
    path = bundles("b")
    real = open_bundle

    def opened(where, **options):  # a family of another shape takes other networks; what is compared is the manifest
        bundle = real(where, **options)
        if bundle.manifest.name != "b":
            return bundle
        shape = changes.get("input_shape")
        manifest = dataclasses.replace(bundle.manifest, classes=changes.get("classes", bundle.manifest.classes))
        if shape is not None:
            manifest = dataclasses.replace(manifest, input=dataclasses.replace(manifest.input, shape=shape))
        return dataclasses.replace(bundle, manifest=manifest)

    monkeypatch.setattr(install_module, "open_bundle", opened)
    with pytest.raises(UpdateError) as error:
        install(dest, path)
    assert str(error.value) == f"{path}: {reason}, and their clients would not understand: --other-interface, if that is wanted"
    assert name_at(dest) == "a"
    install(dest, path, other_interface=True)
    assert name_at(dest) == "b"


def test_damaged_bundle_is_refused_and_nothing_changes(dest: Path, bundles: Callable[[str], Path]) -> None:
    install(dest, bundles("a"))
    new = bundles("b")
    weights = bytearray((new / "weights.bin").read_bytes())
    weights[100] ^= 1
    (new / "weights.bin").write_bytes(weights)
    with pytest.raises(BundleError, match=r"weights\.bin: has SHA-256"):
        install(dest, new)
    assert names(dest) == ["a"]


def test_bundle_that_changes_while_it_is_copied_is_refused(dest: Path, bundles: Callable[[str], Path]) -> None:
    install(dest, bundles("a"))
    new, other = bundles("b"), bundles("c")

    def swap(step: str) -> None:
        if step == "verified":
            shutil.copy(other / "manifest.json", new / "manifest.json")

    with pytest.raises(BundleError, match="was changed while it was copied"):
        install(dest, new, on_step=swap)
    assert name_at(dest) == "a"
    assert names(dest) == ["a"]


def test_signature_is_required_of_what_is_installed_and_gone_back_to(dest: Path, bundles: Callable[[str], Path], tmp_path: Path) -> None:
    pytest.importorskip("cryptography")
    from restnet_runtime.signatures import Keyring
    from restnet_runtime.signing import make_keys, signer

    make_keys(tmp_path / "k")
    keys = Keyring.load([tmp_path / "k.pub"])
    install(dest, bundles("a"))
    with pytest.raises(SignatureError):
        install(dest, bundles("b"), keys=keys)
    signer(tmp_path / "k")(open_bundle(bundles("b")))
    signed = tmp_path / "made" / "b"
    (signed / "more.txt").write_text("nobody vouches for it")
    with pytest.raises(SignatureError, match=r"more\.txt: is not listed"):
        install(dest, signed, keys=keys)
    (signed / "more.txt").unlink()
    assert install(dest, signed, keys=keys).bundle.signed_by == keys.fingerprints[0]
    with pytest.raises(SignatureError):
        roll_back(dest, keys=keys)
    assert name_at(dest) == "b"


def test_signed_once_more_it_is_installed_once_more(dest: Path, bundles: Callable[[str], Path], tmp_path: Path) -> None:
    """As keys are changed: signed by both, trusted by either, then trusted by the new one alone."""
    pytest.importorskip("cryptography")
    from restnet_runtime.signatures import Keyring
    from restnet_runtime.signing import make_keys, signer

    for name in ("old", "new"):
        make_keys(tmp_path / name)
    bundle = open_bundle(bundles("a"))
    signer(tmp_path / "old")(bundle)
    install(dest, bundle.path, keys=Keyring.load([tmp_path / "old.pub"]))
    signer(tmp_path / "new")(bundle)
    again = install(dest, bundle.path, keys=Keyring.load([tmp_path / "old.pub", tmp_path / "new.pub"]))
    assert again.changed
    assert previous_of(dest) is None, "the same bundle is not the one before"
    new = Keyring.load([tmp_path / "new.pub"])
    assert open_bundle(dest, keys=new).signed_by == new.fingerprints[0]
    assert not install(dest, bundle.path, keys=new).changed


def test_what_is_in_the_way_is_not_touched(dest: Path, bundles: Callable[[str], Path]) -> None:
    dest.write_text("a file")
    with pytest.raises(UpdateError, match="is in the way"):
        install(dest, bundles("a"))
    assert dest.read_text() == "a file"
    with pytest.raises(UpdateError, match="there is no directory"):
        install(dest.parent / "nowhere" / "mine", bundles("a"))
    with pytest.raises(UpdateError, match="nothing was installed here"):
        roll_back(dest.parent / "other")


def test_full_disk_is_known_before_anything_is_written(dest: Path, bundles: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    install(dest, bundles("a"))
    usage = shutil.disk_usage(dest)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(UpdateError, match="has 1 kB free, the bundle needs"):
        install(dest, bundles("b"))
    assert names(dest) == ["a"]


def test_two_at_once_are_one(dest: Path, bundles: Callable[[str], Path]) -> None:
    install(dest, bundles("a"))

    def again(step: str) -> None:
        if step == "copied":
            with pytest.raises(UpdateError, match="another restnet-update is at work"):
                install(dest, bundles("c"))

    install(dest, bundles("b"), on_step=again)
    assert names(dest) == ["a", "b"]


def test_error_on_the_way_leaves_what_was_there_and_nothing_else(dest: Path, bundles: Callable[[str], Path]) -> None:
    install(dest, bundles("a"))
    for wanted in ("copying", "copied", "checked"):

        def fail(step: str, wanted: str = wanted) -> None:
            if step == wanted:
                raise OSError(5, "Input/output error")

        with pytest.raises(OSError, match="Input/output"):
            install(dest, bundles("b"), on_step=fail)
        assert (name_at(dest), names(dest), list(versions_of(dest).glob(".*"))) == ("a", ["a"], [])


def test_everything_is_synced_before_anything_leads_to_it(
    dest: Path, bundles: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The order of the calls; that it is enough is shown by scripts/kill_update.py --power on a real file system."""
    install(dest, bundles("a"))
    synced: set[tuple[int, int]] = set()
    fsync = os.fsync

    def seen(descriptor: int) -> None:
        fsync(descriptor)
        found = os.fstat(descriptor)
        synced.add((found.st_dev, found.st_ino))

    monkeypatch.setattr(os, "fsync", seen)

    def check(step: str) -> None:
        if step == "named":
            store = versions_of(dest)
            version = next(path for path in store.iterdir() if path.is_dir() and not path.is_symlink() and path != dest.resolve())
            lacking = [path for path in [store, version, *version.rglob("*")] if (path.stat().st_dev, path.stat().st_ino) not in synced]
            assert lacking == []

    install(dest, bundles("b"), on_step=check)
    assert (dest.parent.stat().st_dev, dest.parent.stat().st_ino) in synced


@pytest.mark.parametrize("way", ["link", "directory"])
def test_killed_before_each_change_of_the_file_system(
    killing: ModuleType, bundles: Callable[[str], Path], tmp_path: Path, way: str
) -> None:
    """Every third of them here; the script does all, and serves from what is left at each step."""
    old, new = bundles("a"), bundles("b")
    for nth in range(1, 100, 3):
        dest = killing.prepare(tmp_path / f"{way}{nth}", old, way)
        if not killing.run_killed(dest, new, "change", nth):
            assert nth > 20
            return
        assert name_at(dest) in ("a", "b")
        install(dest, new)
        assert name_at(dest) == "b"
        assert killing.leftovers(dest) == []


@pytest.mark.parametrize("step", ["copying", "named", "linked", "swapped"])
def test_killed_at_a_step_and_served_from_what_is_left(
    killing: ModuleType, bundles: Callable[[str], Path], cache_root: Path, tmp_path: Path, step: str
) -> None:
    assert step in STEPS
    old, new = bundles("a"), bundles("b")
    dest = killing.prepare(tmp_path / "place", old, "link")
    assert killing.run_killed(dest, new, step)
    row = killing.look("link", "kill", step, dest, old, new, cache_root)
    assert row.served == ("new" if step == "swapped" else "old")
    assert row.next_update == "done"


def test_command(dest: Path, bundles: Callable[[str], Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert update_cli.main([str(dest), str(bundles("a"))]) == 0
    first = dest.resolve()
    assert capsys.readouterr().out == f"{dest} leads to {first} (a)\n"
    assert update_cli.main([str(dest), str(bundles("b"))]) == 0
    assert capsys.readouterr().out == f"{dest} leads to {dest.resolve()} (b), before {first.name}\n"
    assert update_cli.main([str(dest), str(bundles("b"))]) == 0
    assert capsys.readouterr().out == f"{dest} led already to {dest.resolve()} (b)\n"
    assert update_cli.main([str(dest), "--list"]) == 0
    assert capsys.readouterr().out == f"{first.name}  a  previous\n{dest.resolve().name}  b  served\n"
    assert update_cli.main([str(dest), "--rollback"]) == 0
    assert capsys.readouterr().out == f"{dest} leads to {first} (a), before {open_bundle(bundles('b')).digest[:16]}\n"
    for wrong in ([], ["--list", "--rollback"], [str(dest), "--list"], [str(dest), "--keep", "0"]):
        assert update_cli.main([str(dest), *wrong]) == 2
    assert update_cli.main([str(dest.parent / "none"), "--rollback"]) == 2
    assert "nothing was installed here" in capsys.readouterr().err
