"""--resume after something changed that decides a result, and lists of results that are damaged."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import making
from typer.testing import CliRunner

from adversarial import case

WORDS = "Lily had a cat dog ball tree and one two three more She was the end".split()
TEMPLATE = "{% for m in messages %}{{ m['content'] }} She {% endfor %}"


def world(place: Path) -> list[str]:
    """A call of merge-and-eval: a tiny base with a tokenizer, two adapters and a task."""
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
    given = [place / "a", place / "b", "--task", place / "task.jsonl", "--base", place / "base"]
    options = "--json --max-new-tokens 2 --threads 1 --chat-template on --system uniform --quiet"
    return ["merge-and-eval", *map(str, given), *options.split()]


def call(place: Path, arguments: list[str]) -> tuple[int, str, list[str]]:
    """Exit code, standard error (or the exception), and the notes of the report."""
    from loraprobe.cli import app

    result = CliRunner().invoke(app, arguments, env={"LORAPROBE_CACHE": str(place / "cache")})
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        return -1, type(result.exception).__name__, []
    notes = json.loads(result.stdout).get("notes", []) if result.stdout else []
    return result.exit_code, result.stderr, notes


def rows(place: Path) -> int:
    """How many results the cache holds."""
    return sum(file.read_bytes().count(b"\n") - 1 for file in place.rglob("results.jsonl"))


def resumed(place: Path, change: Callable[[Path], object], named: str) -> str:
    """The effect of --resume after a complete run and a change, and whether it names the change."""
    arguments = world(place)
    call(place, arguments)
    before = rows(place)
    assert before, "the first run keeps its results"
    change(place)
    code, error, notes = call(place, [*arguments, "--resume"])
    if code not in (0, 1, 3):
        return f"exit {code}" if code >= 0 else f"traceback {error}"
    if rows(place) == before:
        return "old results"
    return "asked anew, " + ("names it" if any(named in note for note in notes) else "says nothing")


def edited(file: str, **changes: object) -> Callable[[Path], object]:
    """Changes keys of a JSON file."""

    def change(place: Path) -> None:
        path = place / file
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


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


# Name -> what changes | the word that a note must hold, and the change.
CHANGES: dict[str, tuple[str, Callable[[Path], object]]] = {
    "nothing-changed": ("nothing |", lambda place: None),
    "lora-alpha": (
        "`lora_alpha` of an adapter: 0.8 -> 99 | lora_alpha",
        edited("a/adapter_config.json", lora_alpha=99),
    ),
    "adapter-weights": (
        "one number of an adapter | adapters.a",
        lambda place: flipped(place / "a/adapter_model.safetensors"),
    ),
    "rope-theta": (
        "`rope_theta` in the base's config.json | rope_theta",
        edited("base/config.json", rope_theta=77.0, rope_parameters=None),
    ),
    "tokenizer": (
        "two words of the base's tokenizer.json change places | tokenizer.json",
        lambda place: swapped(place / "base/tokenizer.json"),
    ),
    "chat-template": (
        "the base's chat_template.jinja | chat_template.jinja",
        lambda place: (place / "base/chat_template.jinja").write_text("{{ 'one two' }}"),
    ),
    "generation-config": (
        "another end of text in the base's generation_config.json | generation_config.json",
        edited("base/generation_config.json", eos_token_id=[1, 15]),
    ),
    "base-weights-same-size-and-time": (
        "one number of the base's weights, size and time of the file set back | weights",
        keeps_time("base/model.safetensors", flipped),
    ),
    "task": (
        "an answer in the task file | tasks.task",
        lambda place: rewritten(place / "task.jsonl"),
    ),
}
for name, (text, change) in CHANGES.items():
    what, _, named = map(str.strip, text.partition("|"))
    known = name in ("adapter-weights", "task")  # it was asked anew, and nothing said so
    case(
        f"resume-{name}",
        f"`--resume` after a change: {what}",
        before="asked anew, says nothing" if known else "old results",
        now="asked anew, names it" if named else "old results",
    )(lambda place, change=change, named=named: resumed(place, change, named))  # type: ignore[misc]


def damaged(place: Path, edit: Callable[[list[bytes]], object]) -> str:
    """The effect of --resume on edited result lines, and whether it names file and line."""
    arguments = world(place)
    call(place, arguments)
    (file,) = place.rglob("results.jsonl")
    lines = file.read_bytes().split(b"\n")
    edit(lines)
    file.write_bytes(b"\n".join(lines))
    code, error, _ = call(place, [*arguments, "--resume"])
    if code in (0, 1, 3):
        return "a verdict"
    if code < 0:
        return f"traceback {error}"
    file_named = "results.jsonl" in error and ("line 3" in error or lines[0][:1] != b"{")
    cure = "wrong cure" if "--overwrite" in error else "no cure" if "--resume" not in error else ""
    return f"exit {code}, {'names file and line' if file_named else 'names no line'}" + (
        f", {cure}" if cure else ""
    )


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


NAMED = "exit 2, names file and line"
CURED = f"{NAMED}, wrong cure"
DAMAGES: dict[str, tuple[str, Callable[[list[bytes]], object], str]] = {
    "ledger-text": ('a value that is a text (`"1"`)', row(value="1"), "traceback TypeError"),
    "ledger-null": ("a value that is null", row(value=None), "traceback TypeError"),
    "ledger-nan": ("a value that is NaN", row(value=float("nan")), "a verdict"),
    "ledger-huge": ("a value of 7e9 (accuracy 583,333,334)", row(value=7e9), "a verdict"),
    "ledger-part": ("an unknown part of a task", row(part="hop0"), "a verdict"),
    "ledger-metric": ("an unknown metric", row(metric="bleu"), "a verdict"),
    "ledger-brackets": ("3,000 nested brackets", line(3, b"[" * 3000), "traceback RecursionError"),
    "ledger-cut-inside": ("a line in the middle that is cut short", line(3, b'{"sys'), CURED),
    "ledger-other-file": ("something else in place of the file", line(1, b"years of work"), CURED),
}
for name, (what, edit, before) in DAMAGES.items():
    case(name, f"a list of results with {what}, and `--resume`", before=before, now=NAMED)(
        lambda place, edit=edit: damaged(place, edit)  # type: ignore[misc]
    )


@case(
    "ledger-another-item",
    "a list of results with one of an item that the task does not hold, and `--resume`",
    before="it counts",
    now="it does not count",
)
def another_item(place: Path) -> str:
    arguments = world(place)
    call(place, arguments)
    (file,) = place.rglob("results.jsonl")
    first = json.loads(file.read_bytes().split(b"\n")[1])
    with file.open("a") as stream:
        stream.write(json.dumps(first | {"item": "99", "group": "item:99"}) + "\n")
    from loraprobe.cli import app

    environment = {"LORAPROBE_CACHE": str(place / "cache")}
    found = json.loads(CliRunner().invoke(app, [*arguments, "--resume"], env=environment).stdout)
    return "it counts" if any(s["n"] != 6 for s in found["evaluation"]) else "it does not count"
