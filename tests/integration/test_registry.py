"""A registry in a folder and in a bucket of a server that speaks S3: many promote at once, some die, bytes change."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import shutil
import signal
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from glyphrun.bundle import BundleError, read_manifest, verify
from glyphrun.cli import app
from glyphrun.images import encode_image
from glyphrun.registry import Registry
from glyphrun.store import Store, StoreError, open_store
from glyphrun.versions import Readings, RegistryError
from tiny_bundles import save_tiny_bundle

NOON = datetime(2026, 5, 4, 12, tzinfo=UTC)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_bundle(tmp_path_factory.mktemp("bundles") / "numbers", "query-digits-nano")


@pytest.fixture(params=["folder", "bucket"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where a registry can be."""
    if request.param == "folder":
        return str(tmp_path / "registry")
    return request.getfixturevalue("bucket").format(hashlib.sha256(str(tmp_path).encode()).hexdigest()[:8])


@pytest.fixture
def registry(place: str, tmp_path: Path) -> Registry:
    return Registry(place, cache=tmp_path / "cache")


def test_versions_count_up_and_the_pointer_keeps_its_history(registry, bundle):
    made = [registry.promote(bundle, "numbers", at=NOON) for _ in range(3)]
    assert [(one.version, one.current) for one in made] == [(1, 1), (2, 2), (3, 3)]
    model = registry.model("numbers")
    assert (model.version, model.versions) == (3, [1, 2, 3])
    assert registry.names() == ["numbers"]
    assert [(move.version, move.why) for move in registry.history("numbers")] == [(n, "promotion") for n in (1, 2, 3)]
    for wanted, version in (("numbers", 3), ("numbers@1", 1)):
        folder = registry.resolve(wanted)
        assert read_manifest(folder).version == version == registry.manifest("numbers", version).version
        assert (folder / "weights.safetensors").read_bytes() == (bundle / "weights.safetensors").read_bytes()
    assert registry.resolve(str(bundle)) == bundle


def test_a_version_keeps_how_it_was_promoted_and_what_was_read(registry, bundle):
    read = Readings(
        dataset="d", dataset_hash="0", split="test", sample_ids=("a",), truths=("1",), candidate=("1",), champion=("7",)
    )
    registry.promote(bundle, "numbers", at=NOON, readings=read, forced=True, reason="Ünder", gate={"margin": 0.1})
    kept = registry.promotion("numbers", 1)
    assert (kept.at, kept.forced, kept.reason, kept.gate) == (NOON, True, "Ünder", {"margin": 0.1})
    assert kept.run == str(bundle)
    assert kept.bundle == hashlib.sha256((registry.resolve("numbers") / "SHA256SUMS").read_bytes()).hexdigest()
    assert registry.readings("numbers", 1) == read


def test_a_rollback_goes_back_along_what_was_current_and_loses_no_version(registry, bundle):
    for _ in range(3):
        registry.promote(bundle, "numbers", at=NOON)
    assert registry.rollback("numbers", at=NOON).version == 2
    assert registry.rollback("numbers", at=NOON).version == 1
    with pytest.raises(RegistryError, match="no version of numbers was current before 1"):
        registry.rollback("numbers", at=NOON)
    assert registry.rollback("numbers", at=NOON, to=3).version == 3
    assert registry.promote(bundle, "numbers", at=NOON).version == 4
    assert registry.rollback("numbers", at=NOON).version == 3
    assert [move.version for move in registry.history("numbers")] == [1, 2, 3, 2, 1, 3, 4, 3]
    with pytest.raises(RegistryError, match="version 3 of numbers is the current one already"):
        registry.rollback("numbers", at=NOON, to=3)
    with pytest.raises(RegistryError, match="no version '9': it has 1, 2, 3, 4"):
        registry.rollback("numbers", at=NOON, to=9)


def test_promotions_at_once_are_all_kept_and_all_moves_of_the_pointer_too(registry, bundle):
    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(lambda _: registry.promote(bundle, "numbers", at=NOON), range(8)))
    versions = sorted(one.version for one in made)
    assert len(set(versions)) == 8
    assert registry.versions("numbers") == versions
    assert sorted(move.version for move in registry.history("numbers")) == versions
    for version in versions:
        verify(registry.resolve(f"numbers@{version}"))


def test_of_several_compared_with_one_champion_one_becomes_current_and_the_others_are_told(registry, bundle):
    registry.promote(bundle, "numbers", at=NOON)
    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(lambda _: registry.promote(bundle, "numbers", at=NOON, compared_with=1), range(4)))
    (winner,) = [one for one in made if one.current == one.version]
    assert registry.current("numbers") == winner.version
    assert len(registry.versions("numbers")) == 5
    assert [move.version for move in registry.history("numbers")] == [1, winner.version]


def test_one_that_died_amid_its_move_holds_up_nobody_for_good(registry, bundle, monkeypatch):
    monkeypatch.setattr("glyphrun.pointer.PATIENCE_S", 0.3)
    registry.promote(bundle, "numbers", at=NOON)
    registry._store.claim("numbers/claims/history", 1)  # and no move follows
    assert registry.promote(bundle, "numbers", at=NOON, compared_with=1).current == 2
    monkeypatch.setattr("glyphrun.pointer.PATIENCE_S", 1e9)
    assert registry.promote(bundle, "numbers", at=NOON, compared_with=2).current == 3


def test_what_cannot_be_a_name_and_what_is_not_there_is_said(registry, bundle):
    for name in ("../numbers", "a/b", "", "Upper", ".hidden"):
        with pytest.raises(RegistryError, match="cannot be a model's name"):
            registry.promote(bundle, name, at=NOON)
    assert registry.names() == []
    with pytest.raises(RegistryError, match="it has: none yet"):
        registry.resolve("numbers")
    registry.promote(bundle, "numbers", at=NOON)
    with pytest.raises(RegistryError, match="neither a bundle's folder nor a model in .*it has: numbers"):
        registry.resolve("nombers")
    with pytest.raises(RegistryError, match="has no model 'nombers' .it has: numbers"):
        registry.promotion("nombers", 1)
    for wanted in ("numbers@7", "numbers@x"):
        with pytest.raises(RegistryError, match="no version '[7x]': it has 1"):
            registry.resolve(wanted)


def test_a_bundle_that_is_incomplete_or_changed_becomes_no_version(registry, bundle, tmp_path):
    for spoil in (
        lambda folder: (folder / "weights.safetensors").unlink(),
        lambda folder: flip(folder / "manifest.json"),
    ):
        copy = tmp_path / "copy"
        shutil.copytree(bundle, copy)
        spoil(copy)
        with pytest.raises(BundleError, match=r"weights.safetensors is missing|manifest.json was changed"):
            registry.promote(copy, "numbers", at=NOON)
        shutil.rmtree(copy)
    assert registry.names() == []
    assert registry._store.names("numbers") == []


def test_a_pointer_that_cannot_be_read_is_named_and_without_it_the_version_before_is_current(registry, bundle):
    for _ in range(2):
        registry.promote(bundle, "numbers", at=NOON)
    registry._store.write("numbers/history/00000002.json", b'{"version": ')
    with pytest.raises(RegistryError, match=r"numbers/history/00000002\.json cannot be read.*remove it"):
        registry.resolve("numbers")
    registry._store.delete("numbers/history/00000002.json")
    assert registry.current("numbers") == 1
    assert registry.versions("numbers") == [1, 2]


def test_a_bundle_changed_in_its_store_is_not_read(registry, bundle):
    registry.promote(bundle, "numbers", at=NOON)
    registry.promote(bundle, "numbers", at=NOON)
    path = "numbers/2/bundle/weights.safetensors"
    content = bytearray(registry._store.read(path))
    content[-1] ^= 1
    registry._store.write(path, bytes(content))
    with pytest.raises(BundleError, match=r"weights\.safetensors was changed"):
        verify(registry.resolve("numbers"))
    sums = registry._store.read("numbers/2/bundle/SHA256SUMS").decode().splitlines()
    changed = [
        f"{hashlib.sha256(content).hexdigest()}  weights.safetensors" if "weights" in line else line for line in sums
    ]
    registry._store.write("numbers/2/bundle/SHA256SUMS", ("\n".join(changed) + "\n").encode())
    with pytest.raises((BundleError, RegistryError), match="changed"):
        verify(registry.resolve("numbers"))
    assert registry.rollback("numbers", at=NOON).version == 1
    verify(registry.resolve("numbers"))
    with pytest.raises((BundleError, RegistryError), match="changed"):
        registry.rollback("numbers", at=NOON, to=2)


def test_a_bucket_is_downloaded_once_and_again_if_the_copy_was_spoilt(bucket, bundle, tmp_path):
    registry = Registry(bucket.format("cached"), cache=tmp_path / "cache")
    registry.promote(bundle, "numbers", at=NOON)
    first = registry.resolve("numbers")
    assert first == tmp_path / "cache/bundles" / registry.promotion("numbers", 1).bundle
    before = (first / "weights.safetensors").stat().st_mtime_ns
    assert (registry.resolve("numbers") / "weights.safetensors").stat().st_mtime_ns == before
    flip(first / "weights.safetensors")
    verify(registry.resolve("numbers"))
    with ThreadPoolExecutor(4) as pool:
        shutil.rmtree(tmp_path / "cache")
        assert set(pool.map(registry.resolve, ["numbers"] * 4)) == {first}
    assert [path.name for path in first.parent.iterdir()] == [first.name]
    assert registry.model("numbers").place == "s3://models/cached/numbers/1/bundle", "no key or option of the URI"


@pytest.mark.parametrize(
    ("named", "said"),
    [("foo://models", "Unrecognized filesystem"), ("s3://", "names no bucket"), ("hdfs://x/y", "cannot be used")],
)
def test_a_place_that_cannot_be_used_is_said_in_a_sentence(named, said):
    with pytest.raises(StoreError, match=said) as error:
        open_store(named)
    assert "\n" not in str(error.value)


def in_a_child(act: Callable[[], object]) -> int:
    """The exit status of a process like this one: 0 if it acted, 1 if that raised OSError, 2 for what else it raised."""
    child = os.fork()
    if not child:
        status = 2
        try:
            act()
            status = 0
        except OSError:
            status = 1
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_killed_after_any_write_there_is_a_whole_version_or_none(bundle, tmp_path):
    original = {method: getattr(Store, method) for method in ("write", "upload")}

    def promote_and_die(root: Path, after: int) -> None:
        left = after

        def counted(method):
            def act(*arguments):
                nonlocal left
                result = original[method](*arguments)
                left -= 1
                if not left:
                    os.kill(os.getpid(), signal.SIGKILL)
                return result

            return act

        tempfile.tempdir = str(tmp_path)  # what is left there by whom is killed goes with the test
        for method in original:
            setattr(Store, method, counted(method))
        Registry(root).promote(bundle, "numbers", at=NOON)

    seen = []
    for after in range(1, 20):
        registry = Registry(tmp_path / str(after))
        registry.promote(bundle, "numbers", at=NOON)
        status = in_a_child(lambda root=tmp_path / str(after), after=after: promote_and_die(root, after))
        versions, current = registry.versions("numbers"), registry.current("numbers")
        seen.append((versions, current))
        verify(registry.resolve("numbers"))
        verify(registry.resolve(f"numbers@{versions[-1]}"))
        again = registry.promote(bundle, "numbers", at=NOON)
        assert again.version > versions[-1] and registry.current("numbers") == again.version
        if status == 0:
            break
    assert status == 0, "it was killed at every write"
    assert seen[0] == ([1], 1)
    assert ([1, 2], 1) in seen, "killed between a version and the move of the pointer"
    assert seen[-1] == ([1, 2], 2)


def test_a_full_disk_leaves_nothing_and_uses_up_no_number(bundle, tmp_path):
    root = tmp_path / "registry"

    def promote_on_a_small_disk() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
        Registry(root).promote(bundle, "numbers", at=NOON)

    assert (bundle / "weights.safetensors").stat().st_size > 20_000
    assert in_a_child(promote_on_a_small_disk) == 1
    assert not [path for path in root.rglob("*") if path.is_file()]
    assert Registry(root).promote(bundle, "numbers", at=NOON).version == 1


def test_a_registry_that_cannot_be_written_says_where(bundle, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file/registry"):
        Registry(tmp_path / "file/registry").promote(bundle, "numbers", at=NOON)
    with tempfile.TemporaryDirectory() as folder:
        root, copy = Path(folder, "registry"), Path(folder, "bundle")
        shutil.copytree(bundle, copy)
        Registry(root).promote(copy, "numbers", at=NOON)
        before = sorted(root.rglob("*"))
        for path in [Path(folder), copy, *copy.iterdir(), root, *before]:
            path.chmod(0o555 if path.is_dir() else 0o444)

        def promote_as_nobody() -> None:
            if not os.geteuid():  # to whom modes mean nothing
                os.setuid(65534)
            verify(Registry(root).resolve("numbers"))
            with pytest.raises(PermissionError, match=str(root)):
                Registry(root).promote(copy, "numbers", at=NOON)

        assert in_a_child(promote_as_nobody) == 0
        assert sorted(root.rglob("*")) == before
        for path in [Path(folder), copy, root, *before]:
            path.chmod(0o755)


def test_verbs_take_a_bucket_for_a_registry(bucket, bundle, tmp_path, monkeypatch):
    monkeypatch.setenv("GLYPHRUN_REGISTRY", bucket.format("verbs"))
    monkeypatch.setenv("GLYPHRUN_CACHE", str(tmp_path / "cache"))
    (tmp_path / "0.png").write_bytes(encode_image(np.zeros((40, 40, 3), np.uint8)))

    def glyphrun(*arguments: str) -> str:
        done = CliRunner().invoke(app, arguments)
        assert done.exit_code == 0, done.output
        return done.output

    assert "s3://models/verbs/numbers/1/bundle" in glyphrun("promote", str(bundle), "--name", "numbers")
    assert "1 of 1" in glyphrun("models")
    answer = json.loads(glyphrun("recognize", str(tmp_path / "0.png"), "--model", "numbers", "--json"))
    assert answer["provenance"]["version"] == "1"
    monkeypatch.setenv("GLYPHRUN_REGISTRY", "foo://models")
    refused = CliRunner().invoke(app, ["models"])
    assert refused.exit_code == 1 and "foo://models cannot be used" in refused.output


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_a_record_is_readable_without_glyphrun(bundle, tmp_path):
    Registry(tmp_path).promote(bundle, "numbers", at=NOON)
    record = json.loads((tmp_path / "numbers/1/promotion.json").read_text())
    assert record["version"] == 1 and record["at"] == "2026-05-04T12:00:00Z"
    assert json.loads((tmp_path / "numbers/history/00000001.json").read_text())["version"] == 1
