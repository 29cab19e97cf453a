"""Where the cache lies: as each system has it, and where an earlier version left it."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from loraprobe.cache import cache_directory


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A user without settings, on a system whose caches platformdirs finds in Library."""
    for name in ("LORAPROBE_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    library = SimpleNamespace(user_cache_path=lambda name, appauthor: tmp_path / "Library" / name)
    monkeypatch.setitem(sys.modules, "platformdirs", library)
    return tmp_path


@pytest.mark.parametrize(
    ("system", "place"), [("linux", ".cache"), ("darwin", "Library"), ("win32", "Library")]
)
def test_the_cache_lies_where_the_system_has_caches(home, monkeypatch, system, place):
    monkeypatch.setattr(sys, "platform", system)
    assert cache_directory() == home / place / "loraprobe"


def test_what_is_given_wins(home, monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    (home / ".cache" / "loraprobe").mkdir(parents=True)
    (home / "given" / "loraprobe").mkdir(parents=True)
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / "given"))
    assert cache_directory() == home / "given" / "loraprobe"
    monkeypatch.setenv("LORAPROBE_CACHE", str(home / "mine"))
    assert cache_directory() == home / "mine"


def test_the_cache_of_an_earlier_version_is_used(home, monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    earlier, usual = home / ".cache" / "loraprobe", home / "Library" / "loraprobe"
    earlier.mkdir(parents=True)
    assert cache_directory() == earlier
    usual.parent.mkdir()
    earlier.rename(usual)
    assert cache_directory() == usual


def test_what_platformdirs_says_of_macos_and_windows():
    """The names that the fixture stands for, by the library itself."""
    macos = pytest.importorskip("platformdirs.macos", reason="needs platformdirs")
    assert macos.MacOS("loraprobe", appauthor=False).user_cache_dir.endswith(
        "Library/Caches/loraprobe"
    )
