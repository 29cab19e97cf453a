"""SIGKILL at random moments: the output is absent or whole, and going on gives the same answer.

Every run is a fork of this process, which has one thread and has imported everything already, so
that most kills fall into the work and not into imports. A run without a kill comes first; its
answer is what every killed and resumed run has to give in the end.
"""

import contextlib
import itertools
import json
import os
import random
import shutil
import signal
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import typer
from forks import run
from making import LLAMA, random_adapter, saved_pair

import loraprobe.demo
import loraprobe.pipeline.evaluate
from loraprobe.adapters import read_adapter
from loraprobe.cli import app

SMALL_WORLD = Path(loraprobe.demo.__file__).parent / "small-world"
COMMANDS = typer.main.get_command(app)  # built once, and not in every fork
torch.set_num_threads(1)


@dataclass(frozen=True)
class Operation:
    """A command to kill. start: runs it in a directory; again: runs it after a kill; whole: raises
    for an incomplete output; answer: the result, which must be the same in the end."""

    name: str
    prepare: Callable[[Path], None]
    start: Callable[[Path], None]
    again: Callable[[Path], None]
    whole: Callable[[Path], None]
    answer: Callable[[Path], Any]


def forked(work: Callable[[], None], kill_after: float | None = None) -> tuple[int, str, float]:
    """Runs `work` in a child, which is killed after so many seconds: its exit code (below 0 after a
    kill), its standard error, and its duration."""
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as place:
        child = os.fork()
        if child == 0:
            run(work, Path(place), dict(os.environ))
        if kill_after is not None:
            time.sleep(kill_after)
            os.kill(child, signal.SIGKILL)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        said = Path(place) / "stderr"  # absent where the child was killed before it began
        text = said.read_text("utf-8") if said.exists() else ""
    return code, text, time.monotonic() - start


def command(*arguments: object, out: Path) -> None:
    """The command line, its standard output into a file."""
    with out.open("w") as stream, contextlib.redirect_stdout(stream):
        COMMANDS([str(argument) for argument in arguments])


def storm(operation: Operation, points: int, seed: int) -> dict[str, int]:
    """Kills `points` runs and counts; raises AssertionError where a promise is broken."""
    draw = random.Random(f"{operation.name}:{seed}")
    counts = {"killed": 0, "finished": 0, "output there": 0}
    with tempfile.TemporaryDirectory() as root:
        calm = Path(root) / "calm"
        calm.mkdir()
        operation.prepare(calm)
        seconds = []
        for _ in range(2):  # the second is warm
            code, said, took = forked(lambda: operation.start(calm))
            assert code in (0, 1, 3), f"{operation.name} fails: {said}"
            seconds.append(took)
            wanted = operation.answer(calm)
            shutil.rmtree(calm)
            calm.mkdir()
            operation.prepare(calm)
        for point in range(points):
            place = Path(root) / str(point)
            place.mkdir()
            operation.prepare(place)
            after = draw.uniform(0, 1.1 * min(seconds))
            code, *_ = forked(lambda place=place: operation.start(place), after)
            counts["killed" if code < 0 else "finished"] += 1
            counts["output there"] += (place / "out").exists()
            operation.whole(place)
            code, said, _ = forked(lambda place=place: operation.again(place))
            assert code in (0, 1, 3), f"{operation.name}: no resume: {said}"
            found = operation.answer(place)
            assert found == wanted, f"{operation.name}: another answer after {after:.3f} s"
            shutil.rmtree(place)
    return counts


# merge


def _two_adapters(place: Path) -> None:
    wide = {f"{path}.{i}": (96, 64) for i in range(12) for path in LLAMA}
    saved_pair(place, wide, scaling=0.05)


def _merge(place: Path, *more: str) -> None:
    _run(place, "merge", f"a={place / 'a'}", f"b={place / 'b'}", "-o", place / "out", *more)


def _run(place: Path, *arguments: Any) -> None:
    command(*arguments, "--json", "-q", out=place / "said")


def _output_is_whole(place: Path) -> None:
    """The output is not there, or everything of it is."""
    if not (place / "out").exists():
        return
    names = sorted(p.name for p in (place / "out").iterdir())
    assert names == ["README.md", "adapter_config.json", "adapter_model.safetensors"], names
    assert not [i for i in read_adapter(place / "out").issues if i.severity == "error"]
    assert (place / "out" / "README.md").read_text().endswith("\n")


def _bytes(place: Path) -> dict[str, bytes]:
    text = {p.name: p.read_bytes() for p in sorted((place / "out").iterdir())}
    return {n: b.replace(str(place).encode(), b"") for n, b in text.items()}


def _merge_again(place: Path) -> None:
    _merge(place, "--overwrite")


MERGE = Operation("merge", _two_adapters, _merge, _merge_again, _output_is_whole, _bytes)


def _merge_before(place: Path) -> None:
    """The adapters, and an output of another method that is to be replaced."""
    _two_adapters(place)
    code, said, _ = forked(lambda: _merge(place, "--method", "sum"))
    assert code == 0, said


def _old_or_new(place: Path) -> None:
    """There is no moment without an output."""
    assert (place / "out").exists(), "the old output is gone and the new one is not there"
    _output_is_whole(place)


OVERWRITE = Operation("overwrite", _merge_before, _merge_again, _merge_again, _old_or_new, _bytes)


# merge-and-eval


def _world(place: Path) -> None:
    os.environ["LORAPROBE_CACHE"] = str(place / "cache")


def _audit(place: Path, *more: str) -> None:
    os.environ["LORAPROBE_CACHE"] = str(place / "cache")
    adapters = sorted((SMALL_WORLD / "adapters").iterdir())[:2]
    task = sorted((SMALL_WORLD / "tasks").glob("*.jsonl"))[0]
    given = [f"x={adapters[0]}", f"y={adapters[1]}", "--base", SMALL_WORLD / "base", "--task", task]
    options = "--limit 12 --threads 1 --system uniform --system arrow".split()
    _run(place, "merge-and-eval", *given, *options, *more)


def _document(place: Path) -> Any:
    """The JSON without what two runs may differ in."""
    document = json.loads((place / "said").read_text())
    document.pop("provenance")
    document["notes"] = [n for n in document["notes"] if "earlier run" not in n]
    return document


def _no_half_result(place: Path) -> None:
    for file in (place / "cache").rglob("results.jsonl"):
        *lines, _last = file.read_text().split("\n")
        for line in lines:
            json.loads(line)


def _audit_again(place: Path) -> None:
    _audit(place, "--resume")


AUDIT = Operation("merge-and-eval", _world, _audit, _audit_again, _no_half_result, _document)


# downloads


def _download(place: Path) -> None:
    from huggingface_hub import constants

    os.environ["HF_HUB_CACHE"] = constants.HF_HUB_CACHE = str(place / "cache")
    _merge_from_the_hub(place)


def _merge_from_the_hub(place: Path) -> None:
    _run(place, "merge", "a=acme/a", "b=acme/b", "-o", place / "out", "--overwrite")


DOWNLOAD = Operation("download", lambda place: None, _download, _download, _output_is_whole, _bytes)


@contextlib.contextmanager
def slow_hub() -> Any:
    """A Hub on loopback whose bodies trickle, in a process of its own."""
    from hubs import Misbehaving, _Handler
    from huggingface_hub import constants
    from huggingface_hub.utils import _http

    shapes = {"layers.0.up": (512, 256)}
    with tempfile.TemporaryDirectory() as made:  # every repository holds it, so it names no base
        random_adapter("a", shapes, 8, scaling=0.05, base_model=None).save(Path(made) / "a")
        files = {f.name: f.read_bytes() for f in (Path(made) / "a").iterdir()}
    server = Misbehaving(files)
    send = _Handler.send

    def trickle(self: Any, status: int, headers: Any, content: bytes, body: bool) -> None:
        send(self, status, headers, content, False)
        for start in range(0, len(content) if body else 0, 8192):
            self.wfile.write(content[start : start + 8192])
            time.sleep(0.005)

    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        _Handler.send = trickle  # type: ignore[method-assign]
        with server.running():
            os.write(writer, server.url.encode())
            time.sleep(3600)
    os.close(writer)  # reading ends where the child has ended
    url = os.read(reader, 200).decode()
    before = constants.ENDPOINT
    os.environ["HF_ENDPOINT"] = constants.ENDPOINT = url
    constants.HUGGINGFACE_CO_URL_TEMPLATE = url + "/{repo_id}/resolve/{revision}/{filename}"
    constants.HF_HUB_OFFLINE = False
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    try:
        yield _http
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        constants.ENDPOINT = before


OPERATIONS = {operation.name: operation for operation in (MERGE, OVERWRITE, AUDIT, DOWNLOAD)}


def at_flush(number: int) -> None:
    """The flush of that number to the disk kills this process."""
    real, done = os.fsync, itertools.count(1)

    def fsync(handle: int) -> None:
        if next(done) == number:
            os.kill(os.getpid(), signal.SIGKILL)
        real(handle)

    os.fsync = fsync


def kill(name: str, points: int, seed: int) -> None:
    """Prints as JSON what became of the runs of a storm of kills on an operation."""
    with tempfile.TemporaryDirectory() as warm, contextlib.suppress(SystemExit):
        _two_adapters(Path(warm))
        _merge(Path(warm))  # imports here, once, what every fork would import again
    with slow_hub() if name == "download" else contextlib.nullcontext():
        print(json.dumps(storm(OPERATIONS[name], points, seed)))
