"""The cache of evaluations: least recently used entries go first, what another run uses and other files stay."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest

from stableanimator_cli.catalogue import evaluation_cache as cache
from stableanimator_cli.errors import ConfigError


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SA_HOME", str(tmp_path))
    monkeypatch.delenv(cache.VARIABLE, raising=False)


def _entry(key: str, used: float, folder: str = "seen") -> Path:
    """An entry of about 8 KB, last used at ``used``."""
    before = {entry.path for entry in cache.entries()}
    cache.store_arrays(folder, key, {"x": np.random.default_rng(0).random(1000)})
    (path,) = {entry.path for entry in cache.entries()} - before
    os.utime(path, (used, used))
    return path


def test_entries_are_loaded_as_stored_and_a_damaged_one_is_none(tmp_path: Path) -> None:
    path = _entry("a", 1)
    loaded = cache.load_arrays("seen", "a")
    assert loaded is not None
    np.testing.assert_array_equal(loaded["x"], np.random.default_rng(0).random(1000))
    assert cache.load_arrays("seen", "b") is cache.load_arrays("clips", "a") is None
    path.write_bytes(b"junk")
    assert cache.load_arrays("seen", "a") is None


def test_a_cache_that_may_not_be_read_is_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryDirectory() as home:  # pytest's folders are root's alone
        Path(home).chmod(0o755)
        monkeypatch.setenv("SA_HOME", home)
        path, is_root = _entry("a", 1), os.geteuid() == 0
        path.parent.chmod(0)
        if is_root:  # may read everything
            os.seteuid(65534)
        try:
            assert cache.load_arrays("seen", "a") is None
            cache.trim(0)
        finally:
            if is_root:
                os.seteuid(0)
            path.parent.chmod(0o700)
        assert cache.load_arrays("seen", "a") is not None


def test_the_least_recently_used_entries_of_both_folders_are_removed_first() -> None:
    paths = [_entry(str(n), used=n, folder=cache.FOLDERS[n % 2]) for n in range(4)]
    cache.load_arrays("seen", "0")  # now the most recently used
    cache.trim(2 * paths[0].stat().st_size)
    assert [path.exists() for path in paths] == [True, False, False, True]


def test_a_run_trims_the_cache_when_it_ends(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(cache.VARIABLE, "0.01MB")
    with cache.in_use():
        paths = [_entry(str(n), used=n) for n in range(3)]
        assert all(path.exists() for path in paths)
    assert [path.exists() for path in paths] == [False, False, True]
    assert not list(tmp_path.glob(".evaluation-*"))


def test_what_another_run_uses_stays(tmp_path: Path) -> None:
    old, new = _entry("old", used=1), _entry("new", used=3)
    other = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    marker = tmp_path / f".evaluation-{other.pid}"
    marker.touch()
    os.utime(marker, (2, 2))
    try:
        cache.trim(0)
        assert (old.exists(), new.exists(), marker.exists()) == (False, True, True)
    finally:
        other.communicate(b"\n")
    cache.trim(0)  # that run was killed
    assert (new.exists(), marker.exists()) == (False, False)


def test_files_that_are_no_entries_stay(tmp_path: Path) -> None:
    entry = _entry("a", used=1)
    outside = tmp_path / "outside.npz"
    outside.write_bytes(b"x")
    others = [entry.with_name("notes.npz"), entry.with_name(f"{'0' * 64}.txt"), entry.with_name(f"{'1' * 64}.npz")]
    for path in others[:2]:
        path.write_bytes(b"x")
    others[2].symlink_to(outside)
    cache.trim(0)
    assert not entry.exists()
    assert all(path.exists() for path in [*others, outside])


def test_the_limit_is_an_amount_with_its_unit(monkeypatch: pytest.MonkeyPatch) -> None:
    assert cache.size_limit() == 4 * 2**30
    monkeypatch.setenv(cache.VARIABLE, "500MB")
    assert cache.size_limit() == 500_000_000
    for nothing in ("0", "0GiB"):
        monkeypatch.setenv(cache.VARIABLE, nothing)
        with cache.in_use():
            entry = _entry("a", used=1)
        assert not entry.exists()
    monkeypatch.setenv(cache.VARIABLE, "much")
    with pytest.raises(ConfigError, match="SA_CACHE_SIZE: found 'much'"):
        cache.size_limit()
