"""Servers on loopback: one that replies as a test says, one that runs a base with transformers and
peft behind the part of vLLM's or llama.cpp's interface that loraprobe asks; a program vllm."""

from __future__ import annotations

import contextlib
import hashlib
import json
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch

Reply = Callable[[str, dict], tuple[int, Any]]
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


@contextlib.contextmanager
def listening(reply: Callable[[BaseHTTPRequestHandler], None]) -> Iterator[str]:
    """The address of a server on loopback; `reply` answers each request."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            with contextlib.suppress(OSError):
                reply(self)

        do_HEAD = do_POST = do_PUT = do_GET

    class Listening(ThreadingHTTPServer):
        request_queue_size = 128  # a connection that finds no place is tried again after a second
        daemon_threads = False  # no thread of it runs when the next test forks, or at the end

    made = Listening(("127.0.0.1", 0), Handler)
    threading.Thread(target=made.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{made.server_port}"
    finally:
        made.shutdown()
        made.server_close()


def body_of(request: BaseHTTPRequestHandler) -> bytes:
    return request.rfile.read(int(request.headers.get("content-length") or 0))


@contextlib.contextmanager
def server(reply: Reply) -> Iterator[tuple[str, list[str]]]:
    """A server on loopback: (its address, the Authorization headers that it got).

    reply: path and body -> status and document.
    """
    seen: list[str] = []

    def answer(request: BaseHTTPRequestHandler) -> None:
        seen.append(request.headers.get("authorization") or "")
        status, document = reply(request.path, json.loads(body_of(request) or b"{}"))
        request.send_response(status)
        request.end_headers()
        raw = isinstance(document, bytes)
        request.wfile.write(document if raw else json.dumps(document).encode())

    with listening(answer) as url:
        yield url, seen


class ModelServer:
    """Replies of an OpenAI-compatible server that loads adapters while it runs.

    scale: what the server multiplies adapters by, 1 for one that reads them right. most: the
    largest rank that it takes. scores: "vllm" or "" for whether it scores prompts, "base" if it
    does so without adapters, "fails" if it cannot. weighs: adapters that it has from its start,
    which requests weigh, as llama.cpp's server does. named: adapters that it has from its start
    under their names. loads: whether it loads others. sglang: its paths and names are SGLang's.
    kept: what other servers of the same base answered, so that it is computed once.
    """

    def __init__(
        self,
        base: Path,
        *,
        scale: float = 1.0,
        most: int = 512,
        scores: str = "vllm",
        weighs: Mapping[str, Path] = {},
        named: Mapping[str, Path] = {},
        loads: bool = True,
        sglang: bool = False,
        kept: dict[str, dict[str, Any]] | None = None,
    ) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(base)
        self.scale, self.most, self.scores = scale, most, scores
        self.loaded: dict[str, str] = {}  # name -> hash of the files
        self.kept, self.asked = {} if kept is None else kept, 0
        self.lock = threading.Lock()
        self.weighs, self.loads, self.sglang = list(weighs), loads, sglang
        for name, directory in {**weighs, **named}.items():
            self.load(name, directory)

    def __call__(self, path: str, body: dict) -> tuple[int, Any]:
        with self.lock, torch.no_grad():
            if path == "/lora-adapters" and self.weighs:
                held = enumerate(self.weighs)
                return 200, [{"id": i, "path": f"/a/{name}.gguf", "scale": 1} for i, name in held]
            if path == "/props" and self.weighs:
                return 200, {"build_info": "b1-test"}
            if self.weighs and path != "/v1/models" and path != "/v1/completions":
                return 404, {"error": "no such endpoint"}
            if path == "/v1/models":
                owner = {"owned_by": "sglang" if self.sglang else "vllm"}
                data = [{"id": "base", "parent": None, "max_model_len": 64, **owner}]
                data += [{"id": name, "parent": "base", **owner} for name in sorted(self.loaded)]
                return 200, {"data": data}
            if path == ("/server_info" if self.sglang else "/version"):
                return 200, {"version": "0.test"}
            loading = "" if self.sglang else "/v1"
            if self.sglang and path == "/load_lora_adapter" and not self.loads:
                return 400, {"success": False, "error_message": "Dynamic loading is off."}
            if path == f"{loading}/load_lora_adapter" and self.loads:
                return self.load(body["lora_name"], Path(body["lora_path"]))
            if path == f"{loading}/unload_lora_adapter" and self.loads:
                self.loaded.pop(body["lora_name"], None)
                return 200, b"Success"
            if path != "/v1/completions":
                return 404, {"detail": "Not Found"}
            if self.scores == "fails" and "prompt_logprobs" in body:
                return 500, {"error": "EngineCore encountered an issue."}
            self.asked += 1
            adapters = [(self.loaded[name], by) for name, by in self.weights_of(body).items()]
            asked = {key: value for key, value in body.items() if key not in ("model", "lora")}
            key = json.dumps([asked, sorted(adapters), self.scale, self.scores])
            if key not in self.kept:
                self.kept[key] = self.completion(body)
            return 200, {"choices": [self.kept[key]]}

    def load(self, name: str, directory: Path) -> tuple[int, Any]:
        """Loads a directory by peft, as vLLM would."""
        from peft import PeftModel

        config = json.loads((directory / CONFIG).read_text())
        if config["r"] > self.most:
            return 400, {"error": f"LoRA rank {config['r']} is greater than max_lora_rank"}
        if isinstance(self.model, PeftModel):
            self.model.load_adapter(str(directory), adapter_name=name)
        else:
            self.model = PeftModel.from_pretrained(self.model, directory, adapter_name=name)
        for module in self.model.modules():
            scaling = getattr(module, "scaling", None)
            if isinstance(scaling, dict) and name in scaling:
                scaling[name] *= self.scale
        files = [(directory / file).read_bytes() for file in (CONFIG, WEIGHTS)]
        self.loaded[name] = hashlib.sha256(b"".join(files)).hexdigest()
        return 200, b"Success: the adapter was added"

    def completion(self, body: dict) -> dict[str, Any]:
        """A choice: greedy text, and log-probabilities as the body asks for them."""
        prompt = body["prompt"]
        ids = self.tokenizer(prompt)["input_ids"] if isinstance(prompt, str) else list(prompt)
        assert body["temperature"] == 0 and len(ids) + body["max_tokens"] <= 65
        with self.applied(body):
            new, first, ended = self.written(ids, body["max_tokens"], body.get("stop", []))
            choice: dict[str, Any] = {"text": new, "finish_reason": ended, "logprobs": None}
            if body.get("logprobs"):
                choice["logprobs"] = {"token_logprobs": [first]}
        if "prompt_logprobs" not in body:
            return choice
        scored_by = {**body, "model": "base"} if self.scores == "base" else body
        with self.applied(scored_by):
            scores = self.model(torch.tensor([ids])).logits[0].log_softmax(-1)
            golds = [float(scores[i - 1, ids[i]]) for i in range(1, len(ids))]
            if self.scores in ("vllm", "base"):
                rows = [{str(i): {"logprob": g}} for i, g in zip(ids[1:], golds, strict=True)]
                choice["prompt_logprobs"] = [None, *rows]
        return choice

    def written(self, ids: list[int], most: int, stop: list[str]) -> tuple[str, float, str]:
        """Greedy text, the first token's log-probability, and why it ended."""
        new, first, cache, row = [], 0.0, None, ids
        while len(new) < most:
            read = self.model(torch.tensor([row]), past_key_values=cache, use_cache=True)
            scores, cache = read.logits[0, -1].log_softmax(-1), read.past_key_values
            token = int(scores.argmax())
            first = first if new else float(scores.max())
            if token == self.tokenizer.eos_token_id:
                return self.tokenizer.decode(new, skip_special_tokens=True), first, "stop"
            new.append(token)
            row = [token]
            text = self.tokenizer.decode(new, skip_special_tokens=True)
            if any(end in text for end in stop):
                return min((text.partition(end)[0] for end in stop), key=len), first, "stop"
        return self.tokenizer.decode(new, skip_special_tokens=True), first, "length"

    def weights_of(self, body: dict) -> dict[str, float]:
        """What a request names: no adapter, one, or the weights of several."""
        if self.weighs:
            return {self.weighs[one["id"]]: one["scale"] for one in body.get("lora", [])}
        # SGLang takes every other name for that of the base.
        name = body["model"].partition(":")[2] or "base" if self.sglang else body["model"]
        return {} if name == "base" else {name: 1.0}

    @contextlib.contextmanager
    def applied(self, body: dict) -> Iterator[None]:
        """The model with what a request names."""
        weights = self.weights_of(body)
        assert set(self.loaded) >= set(weights) and len(weights) >= len(self.weighs)
        assert not self.weighs or body["cache_prompt"] is False  # it holds what other weights read
        if not any(weights.values()):
            off = getattr(self.model, "disable_adapter", contextlib.nullcontext)
            with off():
                yield
            return
        self.model.base_model.set_adapter(list(weights))
        scalings = [getattr(module, "scaling", None) for module in self.model.modules()]
        changed = [(s, n) for s in scalings if isinstance(s, dict) for n in weights if n in s]
        before = [scaling[name] for scaling, name in changed]
        for scaling, name in changed:
            scaling[name] *= weights[name]
        yield
        for (scaling, name), value in zip(changed, before, strict=True):
            scaling[name] = value


PROGRAM = """#!{python}
# vllm serve ... --port N: passes requests on to the server that $BEHIND names, and has a child.
import os, subprocess, sys, urllib.error, urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

port = int(sys.argv[sys.argv.index("--port") + 1])
child = subprocess.Popen(["sleep", "600"])
with open(os.environ["PIDS"], "w") as file:
    print(os.getpid(), child.pid, *sys.argv, file=file)
if "BEHIND" not in os.environ:
    sys.exit("ValueError: no such base")

class Passing(BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_GET(self):
        body = self.rfile.read(int(self.headers.get("content-length") or 0)) or None
        try:
            answer = urllib.request.urlopen(os.environ["BEHIND"] + self.path, body)
        except urllib.error.HTTPError as error:
            answer = error
        self.send_response(answer.status)
        self.end_headers()
        self.wfile.write(answer.read())

    do_POST = do_GET

ThreadingHTTPServer.request_queue_size = 128
ThreadingHTTPServer(("127.0.0.1", port), Passing).serve_forever()
"""


def write_vllm(directory: Path) -> Path:
    """A directory with a program `vllm`, for PATH."""
    directory.mkdir()
    (directory / "vllm").write_text(PROGRAM.format(python=sys.executable))
    (directory / "vllm").chmod(0o755)
    return directory
