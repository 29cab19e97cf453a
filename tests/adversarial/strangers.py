"""Files, folders and servers of strangers, tried from outside on commit 1ea8880e.

`before` is the outcome of that commit.
"""

from __future__ import annotations

import contextlib
import json
import signal
import struct
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import making
from typer.testing import CliRunner

from adversarial import case, outcome
from adversarial.errors import ask, edit, evaluated, merged, tiny
from adversarial.reading import ROOT, Q, adapter, factors

SECONDS = 20  # of processor time that a case may take
HANGS = f"more than {SECONDS} seconds"
DEFECT = "exit 2, called a defect"
NAMED = "exit 2, names it"
SECRET = "hunter2"
USER = "alice-of-acme"


def call(*arguments: object, **env: str) -> Any:
    """The result of a command line inside this process."""
    from loraprobe.cli import app

    return CliRunner().invoke(app, [str(one) for one in arguments], env=env)


def timed(act: Callable[[], str]) -> str:
    """What `act` returns, or that it takes too much processor time."""
    late = []

    def stop(*_: object) -> None:
        late.append(True)
        raise TimeoutError

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        found = act()
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
    return HANGS if late else found


# 1 and 5: a file that is taken for the user's own command line.
def _merge_over_the_users(place: Path) -> tuple[Path, list[str]]:
    """A directory of the user, and the words of a call that replaces it."""
    making.saved_pair(place)
    outcome("merge", place / "a", place / "b", "-o", place / "mine")
    words = ["merge", place / "a", place / "b", "--weights", "1,1"]
    words += ["-o", place / "mine", "--overwrite"]
    return place / "mine" / "README.md", list(map(str, words))


@case(
    "shard-command",
    "a `shard.json` whose command line writes over a directory of the user, combined",
    before="the directory is replaced",
    now="exit 2",
)
def shard_command(place: Path) -> str:
    mine, words = _merge_over_the_users(place)
    before = mine.read_text()
    shard = {"format": "loraprobe-shard-1", "arguments": words, "share": [1, 1], "complete": True}
    (place / "shard").mkdir()
    (place / "shard" / "shard.json").write_text(json.dumps(shard | {"fingerprint": {}}))
    found = outcome("combine", place / "shard")
    return found if mine.read_text() == before else "the directory is replaced"


@case(
    "config-of-a-report",
    "`--config REPORT.json`, a report whose command line writes over a directory of the user",
    before="the directory is replaced",
    now="exit 2",
)
def config_of_a_report(place: Path) -> str:
    mine, words = _merge_over_the_users(place)
    before = mine.read_text()
    (place / "r.json").write_text(json.dumps({"provenance": {"arguments": words}}))
    found = outcome("merge", "--config", place / "r.json")
    return found if mine.read_text() == before else "the directory is replaced"


@case(
    "config-of-trust",
    "`--config FILE.yaml` with `trust-remote-code: true`",
    before="exit 0",
    now="exit 2",
)
def config_of_trust(place: Path) -> str:
    making.saved_pair(place)
    (place / "c.yaml").write_text("trust-remote-code: true\n")
    return outcome("inspect", place / "a", place / "b", "--config", place / "c.yaml")


# 2: YAML of tasks is code.
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


@case(
    "harness-code",
    "`lm_eval:TASK@DIR`, where the Jinja of a prompt calls `os.mkdir`",
    before="its code ran",
    now="exit 2",
)
def harness_code(place: Path) -> str:
    found = _folder(place, CODE.format(marker=place / "ran").replace("{{{{", "{{"))
    return "its code ran" if (place / "ran").exists() else found


@case(
    "harness-loop",
    "`lm_eval:TASK@DIR`, where the Jinja of a prompt counts to 10^10",
    before=HANGS,
    now="exit 2",
)
def harness_loop(place: Path) -> str:
    return timed(lambda: _folder(place, LOOP))


# 3: what lies in the place of our files.
def _linked(place: Path, name: str) -> str:
    """What a run does to a file of the user to which a file of the cache is a link."""
    from adversarial.resume import call, world

    arguments = world(place)
    call(place, arguments)
    (kept,) = place.rglob("results.jsonl")
    mine = place / "mine.txt"
    mine.write_text("years of work\n")
    kept.with_name(name).unlink(missing_ok=True)
    kept.with_name(name).symlink_to(mine)
    code, _, _ = call(place, arguments)
    lost = mine.read_text() != "years of work\n"
    return "the file is lost" if lost else f"the file stays, exit {code}"


@case(
    "lock-is-a-link",
    "`results.lock` in the cache is a link to a file of the user",
    before="the file is lost",
    now="the file stays, exit 2",
)
def lock_is_a_link(place: Path) -> str:
    return _linked(place, "results.lock")


@case(
    "results-are-a-link",
    "`results.jsonl` in the cache is a link to a file of the user",
    before="the file is lost",
    now="the file stays, exit 2",
)
def results_are_a_link(place: Path) -> str:
    return _linked(place, "results.jsonl")


# 4: a hash that is only a name.
@case(
    "hash-in-a-name",
    "weights of a base that are a link to `blobs/0000...` beside them: the sha256 in the report",
    before="the name",
    now="of the content",
)
def hash_in_a_name(place: Path) -> str:
    from loraprobe.file_hashes import file_hash

    base = tiny(place) / "base"
    (base / "blobs").mkdir()
    weights, blob = base / "model.safetensors", base / "blobs" / ("0" * 64)
    weights.rename(blob)
    weights.symlink_to(blob)
    document = json.loads(call("inspect", place / "a", "--base", base, "--json").stdout)
    found = document["base"]["sha256"]
    return {"0" * 64: "the name", file_hash(blob): "of the content"}.get(found, "neither")


# 6: cards and headers.
@case(
    "card-line-separator",
    "a line separator (U+2028) and `---` inside a value of a card's front matter: the licence",
    before="None",
    now="cc-by-nc-4.0",
)
def card_line_separator(place: Path) -> str:
    from loraprobe.hub.cards import declared_licence

    return str(declared_licence('---\nx: "a\u2028---\u2028b"\nlicense: cc-by-nc-4.0\n---\n'))


@case(
    "card-almost-dashes",
    "`--- ` with a space, which does not end a front matter on the Hub: the licence",
    before="mit",
    now="cc-by-nc-4.0",
)
def card_almost_dashes(place: Path) -> str:
    from loraprobe.hub.cards import declared_licence

    text = "---\nlicense: mit\nx: |\n  a\n--- \nlicense: apache-2.0\n---\n"
    found = declared_licence(text)
    return "mit" if found == "mit" else "cc-by-nc-4.0" if found is None else str(found)


@case(
    "header-key-twice",
    "a safetensors header that has a key twice, the second with other numbers",
    before="exit 0",
    now=NAMED,
)
def header_key_twice(place: Path) -> str:
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
    from adversarial.errors import told

    return told("inspect", place / "a", names="twice")


@case(
    "card-of-another-author",
    "`convert` of an adapter whose card holds a script and a form",
    before="they stand in our card",
    now="exit 0, no markup of theirs",
)
def card_of_another_author(place: Path) -> str:
    card = "---\nlicense: mit\n---\n<script>x()</script><form action=http://e.vil>\n"
    (adapter(place) / "README.md").write_text(card)
    found = outcome("convert", place / "a", "-o", place / "o")
    made = (place / "o" / "README.md").read_text()
    theirs = "<script" in made or "<form" in made
    licence = "" if "license: mit" in made else ", the licence is lost"
    return "they stand in our card" if theirs else f"{found}, no markup of theirs{licence}"


# 7: servers.
@contextlib.contextmanager
def server(reply: Callable[[BaseHTTPRequestHandler], None]) -> Iterator[str]:
    """The address of a server on loopback."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            with contextlib.suppress(OSError):
                reply(self)

        do_POST = do_GET

    made = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    made.daemon_threads = True
    threading.Thread(target=made.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield f"127.0.0.1:{made.server_port}"
    finally:
        made.shutdown()
        made.server_close()


def answering(body: bytes) -> Callable[[BaseHTTPRequestHandler], None]:
    """A server that gives one body to every request."""

    def reply(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.end_headers()
        handler.wfile.write(body)

    return reply


def _served(place: Path, address: str, names: str) -> str:
    from adversarial.errors import told

    base = ["--base", place / "base", "--model", "m"]
    return told("verify", place / "a", *base, "--served", address, names=names)


def _logprob(number: str) -> bytes:
    return b'{"choices":[{"logprobs":{"token_logprobs":[%s]}}]}' % number.encode()


FIGURES = {
    "nan": ("NaN as a log-probability", _logprob("NaN"), "exit 1"),
    "infinite": ("-Infinity as a log-probability", _logprob("-Infinity"), "exit 1"),
    "positive": ("0.5 as a log-probability", _logprob("0.5"), "exit 1"),
    "true": ("`true` as a log-probability", _logprob("true"), "exit 1"),
    "digits": ("a log-probability of 401 digits", _logprob("-" + "9" * 401), DEFECT),
    "nested": ("3,000 nested lists", _logprob("[" * 3000 + "]" * 3000), DEFECT),
}
for _name, (_what, _body, _before) in FIGURES.items():

    @case(
        f"server-{_name}", f"a server that gives {_what}, `verify --served`", before=_before,
        now=NAMED,
    )  # fmt: skip
    def _(place: Path, body: bytes = _body) -> str:
        tiny(place)
        with server(answering(body)) as address:
            return _served(place, f"http://{address}", address)


@case(
    "server-redirects",
    "a server that sends the request on to another host",
    before="the other host is asked",
    now=NAMED,
)
def server_redirects(place: Path) -> str:
    tiny(place)
    asked = []

    def other(handler: BaseHTTPRequestHandler) -> None:
        asked.append(handler.path)
        answering(_logprob("-1.0"))(handler)

    with server(other) as second:

        def redirect(handler: BaseHTTPRequestHandler) -> None:
            handler.send_response(302)
            handler.send_header("location", f"http://{second}/inside")
            handler.end_headers()

        with server(redirect) as first:
            found = _served(place, f"http://{first}", first)
    return "the other host is asked" if asked else found


@case(
    "server-slow",
    "a server that sends a byte every 0.2 seconds, where a request may take one second",
    before="12 seconds, as long as it sends",
    now=NAMED,
)
def server_slow(place: Path) -> str:
    from unittest import mock

    from loraprobe.pipeline import served

    tiny(place)

    def reply(handler: BaseHTTPRequestHandler) -> None:
        handler.wfile.write(b"HTTP/1.0 200 OK\r\nx: ")
        end = time.monotonic() + 12
        while time.monotonic() < end:
            time.sleep(0.2)
            handler.wfile.write(b"x")

    with server(reply) as address, mock.patch.object(served, "TIMEOUT", 1.0):
        start = time.monotonic()
        found = _served(place, f"http://{address}", address)
    return found if time.monotonic() - start < 10 else "12 seconds, as long as it sends"


@case("server-bracket", "`--served 'http://[::1'`", before=DEFECT, now=NAMED)
def server_bracket(place: Path) -> str:
    tiny(place)
    return _served(place, "http://[::1", "http://[::1")


@case(
    "server-label",
    "`--served http://` and a host with a label of 70 letters, which is no name of a host",
    before="exit 2, the server is blamed",
    now="exit 2, the address is named",
)
def server_label(place: Path) -> str:
    tiny(place)
    told = call("verify", place / "a", "--base", place / "base", "--model", "m",
                "--served", f"http://{'é' * 70}.org").stderr  # fmt: skip
    return (
        f"exit 2, {'the server is blamed' if 'does not give' in told else 'the address is named'}"
    )


# 8: bombs.
@case(
    "parquet-rows",
    "a Parquet file of 0.3 MB with 3,000,000 rows",
    before=HANGS,
    now=NAMED,
)
def parquet_rows(place: Path) -> str:
    import pyarrow
    import pyarrow.parquet

    from adversarial.errors import told

    column = pyarrow.array(["x"]).take(pyarrow.array([0] * 3_000_000))
    table = pyarrow.table({"prompt": column, "answer": column})
    pyarrow.parquet.write_table(table, place / "t.parquet", compression="zstd")
    assert (place / "t.parquet").stat().st_size < 500_000
    return timed(lambda: told("task", "check", place / "t.parquet", names="t.parquet"))


@case(
    "many-choices",
    "an item with 100,000 choices",
    before=HANGS,
    now=NAMED,
)
def many_choices(place: Path) -> str:
    tiny(place)
    names = [f"c{n}" for n in range(100_000)]
    ask(place, {"prompt": "p", "answer": "c0", "choices": names})
    return timed(lambda: evaluated(place, names="line 1"))


# 9: one true sentence.
@case("choice-no-token", "a chat template and a choice of which the tokenizer makes no token",
      before=DEFECT, now=NAMED)  # fmt: skip
def choice_no_token(place: Path) -> str:
    base = tiny(place) / "base"
    edit(base / "tokenizer_config.json", chat_template="\u00f1")
    nothing = {"type": "Replace", "pattern": {"String": "\u00f1"}, "content": ""}
    edit(base / "tokenizer.json", normalizer=nothing)
    ask(place, {"prompt": "p", "answer": "\u00f1", "choices": ["\u00f1", "bo"]})
    return evaluated(place, "--chat-template", "on", names="token")


@case("sparse-tensor", "a pickled adapter with a sparse tensor", before=DEFECT, now=NAMED)
def sparse_tensor(place: Path) -> str:
    from adversarial.errors import told

    tensors = factors()
    key = next(iter(tensors))
    tensors[key] = tensors[key].to_sparse()
    making.write_adapter(place / "a", tensors, pickle=True)
    return told("inspect", place / "a", names="sparse")


@case("self-link", "weights that are a link to themselves", before=DEFECT, now=NAMED)
def self_link(place: Path) -> str:
    from adversarial.errors import told

    file = adapter(place) / "adapter_model.safetensors"
    file.unlink()
    file.symlink_to(file.name)
    return told("inspect", place / "a", names=file.name)


@case("alpha-1e300", "`lora_alpha: 1e300`, merged", before=DEFECT, now=NAMED)
def alpha(place: Path) -> str:
    making.saved_pair(place)
    edit(place / "a" / "adapter_config.json", lora_alpha=1e300)
    return merged(place, names="a")


@case(
    "alpha-1e300-inspected",
    "`lora_alpha: 1e300`, inspected beside another",
    before=DEFECT,
    now=NAMED,
)
def alpha_inspected(place: Path) -> str:
    from adversarial.errors import told

    making.saved_pair(place)
    edit(place / "a" / "adapter_config.json", lora_alpha=1e300)
    return told("inspect", place / "a", place / "b", names="lora_alpha")


@case("ties-1e20", "factors times 1e20, merged by TIES", before=DEFECT, now=NAMED)
def ties(place: Path) -> str:
    from safetensors.torch import load_file, save_file

    making.saved_pair(place)
    file = place / "a" / "adapter_model.safetensors"
    save_file({k: v * 1e20 for k, v in load_file(file).items()}, file)
    return merged(place, "--method", "ties", names="a")


@case(
    "parameter-and-lora",
    "one adapter targets `q_proj.weight` as a parameter, another has a LoRA of `q_proj`; merged",
    before="exit 2, please report this",
    now=NAMED,
)
def parameter_and_lora(place: Path) -> str:
    making.saved_pair(place)
    options = {"target_modules": None, "target_parameters": ["q_proj.weight"]}
    making.write_adapter(place / "c", factors(), **options)
    told = call("merge", place / "b", place / "c", "-o", place / "o")
    if "report" in told.stderr:
        return "exit 2, please report this"
    return NAMED if told.exit_code == 2 and "q_proj" in told.stderr else "exit 0"


@case(
    "defect-path",
    "a defect whose exception names a file: the report of it, with `--debug`",
    before="holds the path",
    now="no path",
)
def defect_path(place: Path) -> str:
    from unittest import mock

    adapter(place)
    bad = ValueError(f"cannot read {place}/{USER}/x.json")
    with mock.patch("loraprobe.pipeline.commands.inspect", side_effect=bad):
        told = call("--debug", "inspect", place / "a").stderr
    assert "defect" in told and "Traceback" in told
    return "holds the path" if USER in told or 'File "/' in told else "no path"


# 10: what is written for others to read.
def _kept_private(text: str) -> str:
    return "holds the path" if USER in text else "no path"


@case(
    "path-in-an-error-document",
    "`--json` of an error that names a file below a folder with a user's name",
    before="holds the path",
    now="no path",
)
def path_in_an_error_document(place: Path) -> str:
    home = place / f"{USER} x"
    home.mkdir()
    directory = adapter(home)
    (directory / "adapter_config.json").write_text("{")
    return _kept_private(call("inspect", directory, "--json").stdout)


@case(
    "path-in-kept-results",
    "results in the cache of a base and adapters below a folder with a user's name",
    before="holds the path",
    now="no path",
)
def path_in_kept_results(place: Path) -> str:
    from adversarial.resume import call, world

    home = place / USER
    home.mkdir()
    arguments = world(home)
    edit(home / "a" / "adapter_config.json", base_model_name_or_path=str(home / "base"))
    call(home, arguments)
    kept = [file for file in (home / "cache").rglob("*") if file.is_file()]
    assert kept
    return _kept_private("".join(file.read_text(errors="replace") for file in kept))


ADDRESSES = {
    "slash": f"https://{USER}:{SECRET}/x@example.org/a",
    "at": f"https://{USER}:{SECRET}@x@example.org/a",
    "query": f"https://example.org/a?token={SECRET}",
    "plain": f"https://{USER}:{SECRET}@example.org/a",
}


@case(
    "password-in-an-address",
    f"{len(ADDRESSES)} addresses with passwords in place of an adapter, a task, a base, a server",
    before="printed",
    now="never printed",
)
def password_in_an_address(place: Path) -> str:
    tiny(place)
    shown = []
    for address in ADDRESSES.values():
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
            result = call(*words, "--json", HF_HUB_OFFLINE="1")
            shown += [words] if SECRET in result.output else []
    return "printed" if shown else "never printed"
