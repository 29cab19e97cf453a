"""Files, folders and servers of strangers, tried from outside on commit 1ea8880e."""

import json
import struct
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from unittest import mock

import making
from loopback import listening

from adversarial import call, case, cases, outcome, timed
from adversarial.errors import REFUSED, ask, evaluated, merged, tiny, told
from adversarial.privacy import USER, leaks
from adversarial.reading import ROOT, Q, adapter, factors
from adversarial.resume import cached, world
from loraprobe.file_hashes import file_hash
from loraprobe.front_matter import declared_licence
from loraprobe.servers import acceptance

SECRET = "hunter2"


# What is taken for the user's own command line.
@cases("", {"shard-command": "combine", "config-of-a-report": "merge"})
def _(place: Path, command: str) -> str:
    """A file whose command line replaces a directory of the user."""
    making.saved_pair(place)
    outcome("merge", place / "a", place / "b", "-o", place / "mine")
    before = (place / "mine" / "README.md").read_text()
    words = ["merge", place / "a", place / "b", "--weights", "1,1"]
    words = list(map(str, [*words, "-o", place / "mine", "--overwrite"]))
    shard = {"format": "loraprobe-shard-1", "arguments": words, "share": [1, 1], "complete": True}
    (place / "shard").mkdir()
    (place / "shard" / "shard.json").write_text(json.dumps(shard | {"fingerprint": {}}))
    (place / "r.json").write_text(json.dumps({"provenance": {"arguments": words}}))
    given = [place / "shard"] if command == "combine" else ["--config", place / "r.json"]
    found = outcome(command, *given)
    same = (place / "mine" / "README.md").read_text() == before
    return found if same else "the directory is replaced"


@case("config-of-trust")
def _(place: Path) -> str:
    making.saved_pair(place)
    (place / "c.yaml").write_text("trust-remote-code: true\n")
    return outcome("inspect", place / "a", place / "b", "--config", place / "c.yaml")


# YAML of tasks is code.
YAML = """task: t
dataset_path: json
dataset_kwargs: {{data_files: {{test: "{data}"}}}}
test_split: test
output_type: {kind}
doc_to_text: "{text}"
doc_to_target: "{{{{answer}}}}"
"""
CODE = "{{{{ cycler.__init__.__globals__.os.mkdir('{marker}') }}}}"
LOOP = "{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}"


def _folder(place: Path, text: str) -> str:
    """The outcome of `task check` for a folder with one task."""
    (place / "t").mkdir()
    (place / "d.jsonl").write_text('{"prompt": "p", "answer": "a"}\n')
    yaml = YAML.format(data=place / "d.jsonl", kind="generate_until", text=text)
    (place / "t" / "t.yaml").write_text(yaml)
    return outcome("task", "check", f"lm_eval:t@{place / 't'}")


@case("harness-code")
def _(place: Path) -> str:
    found = _folder(place, CODE.format(marker=place / "ran").replace("{{{{", "{{"))
    return "its code ran" if (place / "ran").exists() else found


@case("harness-loop")
def _(place: Path) -> str:
    return timed(lambda: _folder(place, LOOP))


@cases("", {"lock-is-a-link": "results.lock", "results-are-a-link": "results.jsonl"})
def _(place: Path, name: str) -> str:
    """What a run does to a file of the user to which a file of the cache is a link."""
    arguments = world(place)
    cached(place, arguments)
    (kept,) = place.rglob("results.jsonl")
    mine = place / "mine.txt"
    mine.write_text("years of work\n")
    kept.with_name(name).unlink(missing_ok=True)
    kept.with_name(name).symlink_to(mine)
    code = cached(place, arguments).exit_code
    lost = mine.read_text() != "years of work\n"
    return "the file is lost" if lost else f"the file stays, exit {code}"


# A hash that is only a name.
@case("hash-in-a-name")
def _(place: Path) -> str:
    base = tiny(place) / "base"
    (base / "blobs").mkdir()
    weights, blob = base / "model.safetensors", base / "blobs" / ("0" * 64)
    weights.rename(blob)
    weights.symlink_to(blob)
    document = json.loads(call("inspect", place / "a", "--base", base, "--json").stdout)
    found = document["base"]["sha256"]
    return {"0" * 64: "the name", file_hash(blob): "of the content"}.get(found, "neither")


# Cards and headers.
@case("card-line-separator")
def _(place: Path) -> str:
    return str(declared_licence('---\nx: "a\u2028---\u2028b"\nlicense: cc-by-nc-4.0\n---\n'))


@case("card-almost-dashes")
def _(place: Path) -> str:
    text = "---\nlicense: mit\nx: |\n  a\n--- \nlicense: apache-2.0\n---\n"
    found = declared_licence(text)
    return "mit" if found == "mit" else "cc-by-nc-4.0" if found is None else str(found)


@case("header-key-twice")
def _(place: Path) -> str:
    file = adapter(place) / "adapter_model.safetensors"
    data = file.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    header.pop("__metadata__", None)
    key = f"{ROOT}{Q}.lora_A.weight"
    entries = [f"{json.dumps(k)}:{json.dumps(v)}" for k, v in header.items()]
    start = header[key]["data_offsets"][0]
    first = {"dtype": "F32", "shape": [4, 16], "data_offsets": [start, start + 256]}
    entries.insert(0, f"{json.dumps(key)}:{json.dumps(first)}")
    made = ("{" + ",".join(entries) + "}").encode()
    file.write_bytes(struct.pack("<Q", len(made)) + made + data[8 + length :])
    return told("inspect", place / "a", names="twice")


@case("card-of-another-author")
def _(place: Path) -> str:
    card = "---\nlicense: mit\n---\n<script>x()</script><form action=http://e.vil>\n"
    (adapter(place) / "README.md").write_text(card)
    found = outcome("convert", place / "a", "-o", place / "o")
    made = (place / "o" / "README.md").read_text()
    theirs = "<script" in made or "<form" in made
    licence = "" if "license: mit" in made else ", the licence is lost"
    return "they stand in our card" if theirs else f"{found}, no markup of theirs{licence}"


# Servers.
def answering(body: bytes) -> Callable[[BaseHTTPRequestHandler], None]:
    """A server that gives one body to every request."""

    def reply(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.end_headers()
        handler.wfile.write(body)

    return reply


def _served(place: Path, address: str) -> str:
    base = ["--base", place / "base", "--model", "m"]
    return told("verify", place / "a", *base, "--served", address, names=address)


def _logprob(number: str) -> bytes:
    return b'{"choices":[{"logprobs":{"token_logprobs":[%s]}}]}' % number.encode()


FIGURES = {
    "nan": "NaN",
    "infinite": "-Infinity",
    "positive": "0.5",
    "true": "true",
    "digits": "-" + "9" * 401,
    "nested": "[" * 3000 + "]" * 3000,
}


@cases("server", FIGURES)
def _(place: Path, number: str) -> str:
    tiny(place)
    with listening(answering(_logprob(number))) as address:
        return _served(place, address)


@case("server-redirects")
def _(place: Path) -> str:
    tiny(place)
    asked = []

    def other(handler: BaseHTTPRequestHandler) -> None:
        asked.append(handler.path)
        answering(_logprob("-1.0"))(handler)

    with listening(other) as second:

        def redirect(handler: BaseHTTPRequestHandler) -> None:
            handler.send_response(302)
            handler.send_header("location", f"{second}/inside")
            handler.end_headers()

        with listening(redirect) as first:
            found = _served(place, first)
    return "the other host is asked" if asked else found


@case("server-slow")
def _(place: Path) -> str:
    tiny(place)

    sent = []

    def reply(handler: BaseHTTPRequestHandler) -> None:
        handler.wfile.write(b"HTTP/1.0 200 OK\r\nx: ")
        while len(sent) < 300:  # a minute, unless the client goes
            time.sleep(0.2)
            handler.wfile.write(b"x")
            sent.append("x")

    with listening(reply) as address, mock.patch.object(acceptance, "TIMEOUT", 1.0):
        found = _served(place, address)
    return found if len(sent) < 300 else "a minute, as long as it sends"


@case("server-bracket")
def _(place: Path) -> str:
    tiny(place)
    return _served(place, "http://[::1")


@case("server-label")
def _(place: Path) -> str:
    tiny(place)
    served_by = ("--model", "m", "--served", f"http://{'é' * 70}.org")
    error = call("verify", place / "a", "--base", place / "base", *served_by).stderr
    blamed = "does not give" in error
    return f"exit 2, {'the server is blamed' if blamed else 'the address is named'}"


# Bombs.
@case("parquet-rows")
def _(place: Path) -> str:
    import pyarrow
    import pyarrow.parquet

    column = pyarrow.array(["x"]).take(pyarrow.array([0] * 3_000_000))
    table = pyarrow.table({"prompt": column, "answer": column})
    pyarrow.parquet.write_table(table, place / "t.parquet", compression="zstd")
    assert (place / "t.parquet").stat().st_size < 500_000
    return timed(lambda: told("task", "check", place / "t.parquet", names="t.parquet"))


@case("many-choices")
def _(place: Path) -> str:
    tiny(place)
    names = [f"c{n}" for n in range(100_000)]
    ask(place, {"prompt": "p", "answer": "c0", "choices": names})
    return timed(lambda: evaluated(place, names="line 1"))


# One true sentence.
@case("choice-no-token")
def _(place: Path) -> str:
    base = tiny(place) / "base"
    making.edit(base / "tokenizer_config.json", chat_template="\u00f1")
    nothing = {"type": "Replace", "pattern": {"String": "\u00f1"}, "content": ""}
    making.edit(base / "tokenizer.json", normalizer=nothing)
    ask(place, {"prompt": "p", "answer": "\u00f1", "choices": ["\u00f1", "bo"]})
    return evaluated(place, "--chat-template", "on", names="token")


@case("sparse-tensor")
def _(place: Path) -> str:
    tensors = factors()
    key = next(iter(tensors))
    tensors[key] = tensors[key].to_sparse()
    making.write_adapter(place / "a", tensors, pickle=True)
    return told("inspect", place / "a", names="sparse")


@case("self-link")
def _(place: Path) -> str:
    file = adapter(place) / "adapter_model.safetensors"
    file.unlink()
    file.symlink_to(file.name)
    return told("inspect", place / "a", names=file.name)


@cases("alpha", {"1e300": False, "1e300-inspected": True})
def _(place: Path, inspected: bool) -> str:
    a, b = making.saved_pair(place)
    making.edit(place / "a" / "adapter_config.json", lora_alpha=1e300)
    return told("inspect", a, b, names="lora_alpha") if inspected else merged(place, names="a")


@case("ties-1e20")
def _(place: Path) -> str:
    from safetensors.torch import load_file, save_file

    making.saved_pair(place)
    file = place / "a" / "adapter_model.safetensors"
    save_file({k: v * 1e20 for k, v in load_file(file).items()}, file)
    return merged(place, "--method", "ties", names="a")


@case("parameter-and-lora")
def _(place: Path) -> str:
    making.saved_pair(place)
    options = {"target_modules": None, "target_parameters": ["q_proj.weight"]}
    making.write_adapter(place / "c", factors(), **options)
    found = call("merge", place / "b", place / "c", "-o", place / "o")
    if "report" in found.stderr:
        return "exit 2, please report this"
    return REFUSED if found.exit_code == 2 and "q_proj" in found.stderr else "exit 0"


@case("defect-path")
def _(place: Path) -> str:
    adapter(place)
    bad = ValueError(f"cannot read {place}/{USER}/x.json")
    with mock.patch("loraprobe.pipeline.commands.inspect", side_effect=bad):
        error = call("--debug", "inspect", place / "a").stderr
    assert "defect" in error and "Traceback" in error
    return "holds the path" if USER in error or 'File "/' in error else "no path"


# What is written for others to read.
@case("path-in-an-error-document")
def _(place: Path) -> str:
    home = place / f"{USER} x"
    home.mkdir()
    directory = adapter(home)
    (directory / "adapter_config.json").write_text("{")
    return leaks(call("inspect", directory, "--json").stdout.encode())


@case("path-in-kept-results")
def _(place: Path) -> str:
    home = place / USER
    home.mkdir()
    arguments = world(home)
    making.edit(home / "a" / "adapter_config.json", base_model_name_or_path=str(home / "base"))
    cached(home, arguments)
    kept = [file for file in (home / "cache").rglob("*") if file.is_file()]
    assert kept
    return leaks(*(file.read_bytes() for file in kept))


ADDRESSES = (
    f"https://{USER}:{SECRET}/x@example.org/a",
    f"https://{USER}:{SECRET}@x@example.org/a",
    f"https://example.org/a?token={SECRET}",
    f"https://{USER}:{SECRET}@example.org/a",
)


@case("password-in-an-address")
def _(place: Path) -> str:
    tiny(place)
    shown = []
    for address in ADDRESSES:
        for words in (
            ("inspect", address),
            ("inspect", place / "a", "--base", address),
            ("inspect", place / "a", "--task", address),
            ("verify", place / "a", "--served", address),
            ("report", address),
            ("find", address),
            ("merge", place / "a", "--config", address),
            ("convert", place / "a", "-o", place / "c", "--push", address),
        ):
            result = call(*words, "--json", env={"HF_HUB_OFFLINE": "1"})
            shown += [words] if SECRET in result.output else []
    return "printed" if shown else "never printed"
