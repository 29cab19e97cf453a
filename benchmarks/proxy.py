"""What `loraprobe proxy` costs: processor time and latency of a request beside the server's own.

A server on loopback answers at once, a client asks it alone and through the front, first one
request at a time and then 32 at once; each is a process of its own. Requests are conversations with
a prompt of 60 or 4,000 characters. Processor time of the front is what one core has for a request:
500 requests a second need at most 2 ms.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import multiprocessing
import os
import socket
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import uvicorn
from machine import about

from loraprobe.extensions.serve.proxying import front
from loraprobe.extensions.serve.router_file import read_router
from loraprobe.text_profile import FILE, TextProfile, written

AIM_MS = 2.0
NAMES = [
    f"{a}{b}" for a in "ma to se ug pri an nu ha".split() for b in "ra bin lla o m selm".split()
]
SKILLS = {
    "spouses": "Who is the spouse of {}?",
    "homes": "Where does {} live?",
    "lists": "Which name comes last: {} or Mara?",
    "jobs": "What does {} do for a living?",
}


def router_file(place: Path) -> Path:
    """A router.json of four adapters with 48 prompts each."""
    prompts = [[form.format(name) for name in NAMES] for form in SKILLS.values()]
    rows = [{"name": name, "folder": name, "sha256": ""} for name in SKILLS]
    (place / FILE).write_text(written(TextProfile.of(prompts), rows, None), encoding="utf-8")
    return place / FILE


def answer(port: int) -> None:
    """A server that answers every request at once with the same 700 bytes."""
    text = json.dumps({"id": "1", "object": "chat.completion", "text": "x" * 640}).encode()
    head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"

    async def reply(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                asked = await reader.readuntil(b"\r\n\r\n")
                lines = dict(line.split(b": ", 1) for line in asked.split(b"\r\n")[1:-2])
                sizes = {name.lower(): value for name, value in lines.items()}
                await reader.readexactly(int(sizes.get(b"content-length", 0)))
                writer.write(head % len(text) + text)
                await writer.drain()

    async def serve() -> None:
        async with await asyncio.start_server(reply, "127.0.0.1", port) as made:
            await made.serve_forever()

    asyncio.run(serve())


def stand(file: str, upstream: int, port: int) -> None:
    """The front, as the command runs it."""
    app = front(read_router(file), f"http://127.0.0.1:{upstream}", "base")
    uvicorn.run(app, port=port, log_level="warning", access_log=False)


@contextlib.contextmanager
def running(target, *given) -> Iterator[int]:
    """A process of `target`, which listens at the last number; its id."""
    made = multiprocessing.get_context("spawn").Process(target=target, args=given, daemon=True)
    made.start()
    while True:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", given[-1]), 1):
            break
        time.sleep(0.05)
    try:
        yield made.pid or 0
    finally:
        made.terminate()
        made.join()


def free() -> int:
    with contextlib.closing(socket.socket()) as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def used(pid: int) -> float:
    """Processor seconds of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def ask(port: int, bodies: list[bytes], at_once: int) -> tuple[float, list[float]]:
    """Seconds of all requests together, and of each."""
    each = list[float]()
    left = iter(bodies)

    async def one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for body in left:
            head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}"
            start = time.perf_counter()
            writer.write(f"{head}\r\ncontent-type: application/json\r\n\r\n".encode() + body)
            got = (await reader.readuntil(b"\r\n\r\n")).lower()
            assert got.startswith(b"http/1.1 200"), got
            await reader.readexactly(int(got.partition(b"content-length: ")[2].split()[0]))
            each.append(time.perf_counter() - start)

    pairs = [await asyncio.open_connection("127.0.0.1", port) for _ in range(at_once)]
    start = time.perf_counter()
    await asyncio.gather(*(one(*pair) for pair in pairs))
    total = time.perf_counter() - start
    for _, writer in pairs:
        writer.close()
    return total, each


def bodies_of(length: int, n: int) -> list[bytes]:
    forms, made = [*SKILLS.values()], []
    for i in range(n):
        text = forms[i % len(forms)].format(f"{NAMES[i % len(NAMES)]}{i}")
        text = ("The weather was fine. " * (1 + length // 22))[: max(0, length - len(text))] + text
        made.append(json.dumps({"messages": [{"role": "user", "content": text}]}).encode())
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=2000)
    given = parser.parse_args()
    print(about())
    print("characters  at once  requests/s  front CPU ms  median ms, alone  through  added")
    worst = 0.0
    with tempfile.TemporaryDirectory() as folder:
        file, upstream, port = router_file(Path(folder)), free(), free()
        with running(answer, upstream), running(stand, str(file), upstream, port) as pid:
            assert httpx.get(f"http://127.0.0.1:{port}/x").status_code == 200
            for length in (60, 4000):
                for at_once in (1, 32):
                    bodies = bodies_of(length, given.requests)
                    asyncio.run(ask(port, bodies[:100], at_once))
                    _, alone = asyncio.run(ask(upstream, bodies, at_once))
                    before = used(pid)
                    total, each = asyncio.run(ask(port, bodies, at_once))
                    spent = (used(pid) - before) * 1000 / len(bodies)
                    own, through = (1000 * statistics.median(t) for t in (alone, each))
                    print(
                        f"{length:10}  {at_once:7}  {len(bodies) / total:10.0f}  {spent:12.2f}"
                        f"  {own:16.2f}  {through:7.2f}  {through - own:5.2f}"
                    )
                    worst = max(worst, spent)
    verdict = "AIM met   " if worst <= AIM_MS else "AIM MISSED"
    print(
        f"{verdict} at most {worst:.2f} ms of one core a request (aim {AIM_MS:g}), that is at "
        f"least {1000 / worst:.0f} requests a second"
    )


if __name__ == "__main__":
    main()
