"""Fixtures that many test files share. Helpers that build test data are in making.py."""

import gc
import os

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test may reach beyond loopback by accident

import shapes

shapes.check_shapes()  # before anything imports loraprobe
gc.disable()  # while modules are imported and tests collected, which leave no garbage

import functools  # noqa: E402
import itertools  # noqa: E402
import signal  # noqa: E402
import threading  # noqa: E402
from pathlib import Path  # noqa: E402

import bases  # noqa: E402
import jinja2  # noqa: E402
import making  # noqa: E402
import pytest  # noqa: E402
import shelves  # noqa: E402
import torch  # noqa: E402
import typer.testing  # noqa: E402
from filelock import FileLock  # noqa: E402
from hypothesis import HealthCheck, settings  # noqa: E402

# A slow example is no failure, and every machine tries the same examples. As they are the same each
# time, more than 50 would cost time and find nothing new.
settings.register_profile(
    "any machine",
    deadline=None,
    derandomize=True,
    max_examples=50,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("any machine")

# CliRunner builds all commands anew for each call, which takes longer than many of the calls.
if hasattr(typer.testing, "_get_command"):
    typer.testing._get_command = functools.cache(typer.testing._get_command)

# peft compiles the same template for the card of each adapter that it saves.
jinja2.Environment.compile = functools.cache(jinja2.Environment.compile)

os.fsync = lambda handle: None  # no test takes the power away

# A shell starts a job in the background with SIGINT ignored, and every child inherits that; the
# tests that interrupt a child need it back.
ignored = signal.getsignal(signal.SIGINT) is signal.SIG_IGN
if ignored and threading.current_thread() is threading.main_thread():
    signal.signal(signal.SIGINT, signal.default_int_handler)

if "OMP_NUM_THREADS" not in os.environ:
    torch.set_num_threads(1)  # tests are many and small; a second thread only costs


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skips what uses a command or an option of an extension that is not here."""
    for mark in item.iter_markers("needs"):
        making.skip_without(mark.args[0])


def pytest_collection_finish() -> None:
    """What is there before the first test stays to the end: no search for garbage looks at it."""
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)  # a search costs more than the memory that it finds here
    gc.enable()


@pytest.fixture(scope="session", params=["made", "published"])
def shelf(request, tmp_path_factory) -> shelves.Shelf:
    """GPT-2 adapters that peft saves here, then published ones, which may be absent."""
    if request.param == "made":
        return shelves.made_shelf(tmp_path_factory.mktemp("shelf"))
    if not making.SHARED.is_dir():
        pytest.skip("needs ../shared/data")
    return shelves.published_shelf()


@pytest.fixture(scope="session")
def small_base(tmp_path_factory) -> Path:
    """A base model of 200,000 parameters with a tokenizer of subwords; not to be changed.

    It is trained once for all processes that run the tests.
    """
    root = tmp_path_factory.getbasetemp()
    root = root.parent if "PYTEST_XDIST_WORKER" in os.environ else root
    with FileLock(root / "small-base.lock"):
        if not (root / "small" / "base").exists():
            bases.small_base(root / "small" / "unfinished").rename(root / "small" / "base")
    return root / "small" / "base"


NUMBERS, HOME = itertools.count(), os.getcwd()


@pytest.fixture(scope="session", autouse=True)
def no_cache_of_the_user(tmp_path_factory):
    """Fixtures of modules and sessions share a cache."""
    os.environ["LORAPROBE_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch) -> Path:
    """Every test has a cache of its own, which is empty."""
    cache = tmp_path_factory.getbasetemp() / f"own-cache-{next(NUMBERS)}"
    monkeypatch.setenv("LORAPROBE_CACHE", str(cache))
    return cache


@pytest.fixture(autouse=True)
def count_calls_anew():
    """Every test checks the shapes of its first calls, whatever ran before it."""
    shapes.CALLS.clear()


@pytest.fixture(autouse=True)
def same_directory():
    """No test before this one has left the working directory."""
    assert os.getcwd() == HOME


@pytest.fixture
def llama():
    return making.tiny_llama()


@pytest.fixture
def gpt2():
    return making.tiny_gpt2()


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A working directory with two adapters."""
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate(("one", "two")):
        making.random_adapter(seed=seed).save(tmp_path / name)
    return tmp_path


@pytest.fixture
def pair(tmp_path) -> list[Path]:
    """Two adapters of one base on the disk."""
    return making.saved_pair(tmp_path)


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A server with one good adapter, to spoil; retries do not wait."""
    import time

    from hubs import Misbehaving, adapter_files, use

    server = Misbehaving(adapter_files(tmp_path / "made"))
    with server.running():
        use(monkeypatch, server.url, tmp_path / "cache")
        monkeypatch.setattr(time, "sleep", lambda _: None)
        yield server
