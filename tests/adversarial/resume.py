"""--resume after something changed that decides a result, and lists of results that are damaged."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import making

from adversarial import call, case, cases, copied, ended

VERDICTS = ("exit 0", "exit 1", "exit 3")
ADAPTER, WEIGHTS = "a/adapter_model.safetensors", "base/model.safetensors"
WORDS = "Lily had a cat dog ball tree and one two three more She was the end".split()
TEMPLATE = "{% for m in messages %}{{ m['content'] }} She {% endfor %}"


@copied
def _world(place: Path) -> None:
    """A tiny base with a tokenizer, two adapters and a task."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocab = {word: number for number, word in enumerate(["<unk>", "</s>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()  # type: ignore[assignment]
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", eos_token="</s>", chat_template=TEMPLATE
    )
    fast.save_pretrained(place / "base")
    making.tiny_llama(vocab=len(vocab)).save_pretrained(place / "base")
    making.saved_pair(place, scaling=0.2)
    items = [{"id": str(i), "prompt": f"Lily had a {WORDS[i]}", "answer": "was"} for i in range(6)]
    (place / "task.jsonl").write_text("\n".join(map(json.dumps, items)))


def world(place: Path) -> list[str]:
    """A call of merge-and-eval on a tiny base."""
    _world(place)
    given = [place / "a", place / "b", "--task", place / "task.jsonl", "--base", place / "base"]
    options = "--json --max-new-tokens 2 --threads 1 --chat-template on --system uniform --quiet"
    return ["merge-and-eval", *map(str, given), *options.split()]


def cached(place: Path, arguments: list[str]) -> Any:
    """The result of a call that keeps its results below the directory."""
    return call(*arguments, env={"LORAPROBE_CACHE": str(place / "cache")})


@copied
def _finished(place: Path) -> None:
    cached(place, world(place))


def finished(place: Path) -> list[str]:
    """The call of `world`, whose results a run has kept below the directory."""
    _finished(place)
    return world(place)


def rows(place: Path) -> int:
    """How many results the cache holds."""
    return sum(file.read_bytes().count(b"\n") - 1 for file in place.rglob("results.jsonl"))


def resumed(place: Path, change: Callable[[Path], object], named: str) -> str:
    """The effect of --resume after a complete run and a change, and whether it names the change."""
    arguments = finished(place)
    before = rows(place)
    assert before, "the first run keeps its results"
    change(place)
    result = cached(place, [*arguments, "--resume"])
    if ended(result) not in VERDICTS:
        return ended(result)
    if rows(place) == before:
        return "old results"
    named_it = any(named in note for note in json.loads(result.stdout)["notes"])
    return f"asked anew, {'names it' if named_it else 'says nothing'}"


def edited(file: str, **changes: object) -> Callable[[Path], object]:
    """Changes keys of a JSON file."""

    return lambda place: making.edit(place / file, **changes)


def keeps_time(file: str, change: Callable[[Path], None]) -> Callable[[Path], object]:
    """Changes a file and sets size and time of modification back."""

    def act(place: Path) -> None:
        path, old = place / file, (place / file).stat()
        change(path)
        os.utime(path, ns=(old.st_atime_ns, old.st_mtime_ns))
        new = path.stat()
        assert (new.st_size, new.st_mtime_ns) == (old.st_size, old.st_mtime_ns)

    return act


def flipped(path: Path) -> None:
    """Turns the sign of the last number of a weight file."""
    with path.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        last = file.read(1)[0]
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last ^ 0x80]))


def swapped(path: Path) -> None:
    """Lets two words of a vocabulary change their numbers."""
    vocab = json.loads(path.read_text())
    words = vocab["model"]["vocab"]
    words["cat"], words["dog"] = words["dog"], words["cat"]
    path.write_text(json.dumps(vocab))


def rewritten(path: Path) -> None:
    """Changes the first answer of a task file."""
    path.write_text(path.read_text().replace("was", "the", 1))


# Name -> the word that a note must hold, and the change.
CHANGES: dict[str, tuple[str, Callable[[Path], object]]] = {
    "nothing-changed": ("", lambda place: None),
    "lora-alpha": ("lora_alpha", edited("a/adapter_config.json", lora_alpha=99)),
    "adapter-weights": ("adapters.a", lambda place: flipped(place / ADAPTER)),
    "rope-theta": ("rope_theta", edited("base/config.json", rope_theta=77.0, rope_parameters=None)),
    "tokenizer": ("tokenizer.json", lambda place: swapped(place / "base/tokenizer.json")),
    "chat-template": ("chat_template.jinja",
        lambda place: (place / "base/chat_template.jinja").write_text("{{ 'one two' }}")),
    "generation-config": ("generation_config.json",
        edited("base/generation_config.json", eos_token_id=[1, 15])),
    "base-weights-same-size-and-time": ("weights", keeps_time(WEIGHTS, flipped)),
    "task": ("tasks.task", lambda place: rewritten(place / "task.jsonl")),
}  # fmt: skip


@cases("resume", CHANGES)
def _(place: Path, row: tuple[str, Callable[[Path], object]]) -> str:
    named, change = row
    return resumed(place, change, named)


def damaged(place: Path, edit: Callable[[list[bytes]], object]) -> str:
    """The effect of --resume on edited result lines, and whether it names file and line."""
    arguments = finished(place)
    (file,) = place.rglob("results.jsonl")
    lines = file.read_bytes().split(b"\n")
    edit(lines)
    file.write_bytes(b"\n".join(lines))
    result = cached(place, [*arguments, "--resume"])
    if (end := ended(result)) != "exit 2":
        return "a verdict" if end in VERDICTS else end
    error = result.stderr
    file_named = "results.jsonl" in error and ("line 3" in error or lines[0][:1] != b"{")
    cure = ", wrong cure" if "--overwrite" in error else ""
    cure = cure or (", no cure" if "--resume" not in error else "")
    return f"{end}, {'names file and line' if file_named else 'names no line'}{cure}"


def row(**values: object) -> Callable[[list[bytes]], None]:
    """Changes values of the second result, which stands in line 3."""

    def edit(lines: list[bytes]) -> None:
        lines[2] = json.dumps(json.loads(lines[2]) | values).encode()

    return edit


def line(number: int, content: bytes) -> Callable[[list[bytes]], None]:
    """Replaces a line."""

    def edit(lines: list[bytes]) -> None:
        lines[number - 1] = content

    return edit


DAMAGES: dict[str, Callable[[list[bytes]], object]] = {
    "text": row(value="1"),
    "cut-inside": line(3, b'{"sys'),
    "other-file": line(1, b"years of work"),
}
cases("responses", DAMAGES)(damaged)


@case("responses-another-item")
def _(place: Path) -> str:
    arguments = finished(place)
    (file,) = place.rglob("results.jsonl")
    first = json.loads(file.read_bytes().split(b"\n")[1])
    with file.open("a") as stream:
        stream.write(json.dumps(first | {"item": "99", "group": "item:99"}) + "\n")
    found = json.loads(cached(place, [*arguments, "--resume"]).stdout)
    return "it counts" if any(s["n"] != 6 for s in found["evaluation"]) else "it does not count"


@cases("", {"lock-is-a-link": "results.lock", "results-are-a-link": "results.jsonl"})
def _(place: Path, name: str) -> str:
    """What a run does to a file of the user to which a file of the cache is a link."""
    arguments = finished(place)
    (kept,) = place.rglob("results.jsonl")
    mine = place / "mine.txt"
    mine.write_text("years of work\n")
    kept.with_name(name).unlink(missing_ok=True)
    kept.with_name(name).symlink_to(mine)
    code = cached(place, arguments).exit_code
    lost = mine.read_text() != "years of work\n"
    return "the file is lost" if lost else f"the file stays, exit {code}"
