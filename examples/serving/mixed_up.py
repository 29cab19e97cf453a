"""Whether a server answers alike when asked alone and when many names are asked at once.

python mixed_up.py URL NAME,NAME,... (it needs nothing but Python, and reads only texts)
"""

import collections
import concurrent.futures
import json
import sys
import urllib.request

URL, NAMES = sys.argv[1], sys.argv[2].split(",")
PROMPTS = ["Question: What is 2 + 3?\nAnswer:", "The capital of France is",
           "Once upon a time there was a", "He opened the door and saw"]  # fmt: skip


def ask(pair: tuple[str, str]) -> str:
    body = {"model": pair[0], "prompt": pair[1], "max_tokens": 8, "temperature": 0}
    sent = urllib.request.Request(f"{URL}/v1/completions", json.dumps(body).encode())
    sent.add_header("Content-Type", "application/json")
    with urllib.request.urlopen(sent) as answer:
        return json.load(answer)["choices"][0]["text"]


pairs = [(name, prompt) for prompt in PROMPTS for name in NAMES]
alone = {pair: ask(pair) for pair in pairs}
found: collections.Counter[str] = collections.Counter()
with concurrent.futures.ThreadPoolExecutor(8) as pool:
    for (name, prompt), text in zip(pairs * 5, pool.map(ask, pairs * 5), strict=True):
        by = [other for other in NAMES if alone[other, prompt] == text]
        found[f"{name}: {'right' if name in by else f'as {by}'}"] += 1
for row, times in sorted(found.items()):
    print(f"{row}, {times} answers")
