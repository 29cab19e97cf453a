"""One or two calls of each command, which its help shows."""

EXAMPLES: dict[str, tuple[str, ...]] = {
    "demo": ("loraprobe demo", "loraprobe demo --scenario skill-and-facts"),
    "find": ("loraprobe find gpt2 --limit 10",),
    "inspect": (
        "loraprobe inspect ./legal owner/chat",
        "loraprobe inspect ./legal owner/chat --base auto --probe auto",
    ),
    "merge": (
        "loraprobe merge ./legal owner/chat -o merged",
        "loraprobe merge ./legal owner/chat --method ties:density=0.3 --weights 0.7,0.3 -o merged",
    ),
    "route": ("loraprobe route ./legal owner/chat --router arrow:top_k=1 -o routed",),
    "merge-and-eval": (
        "loraprobe merge-and-eval ./legal owner/chat --task questions.jsonl",
        "loraprobe merge-and-eval ./legal owner/chat --task questions.jsonl --dry-run",
    ),
    "combine": (
        "loraprobe combine shard-1-of-2 shard-2-of-2",
        "loraprobe combine shard-1-of-2 shard-2-of-2 --json --executor local",
    ),
    "screen": (
        "loraprobe screen @library.txt",
        "loraprobe screen @library.txt --task questions.jsonl",
    ),
    "task new": ("loraprobe task new questions.jsonl",),
    "task check": (
        "loraprobe task check questions.jsonl",
        "loraprobe task check gsm8k.jsonl --fields prompt=question --answer-after '####'",
    ),
    "task sample": ("loraprobe task sample questions.jsonl --base gpt2",),
    "convert": ("loraprobe convert ./legal -o portable",),
    "report": ("loraprobe report audit.json --html page.html",),
    "verify": (
        "loraprobe verify merged",
        "loraprobe verify merged --served http://localhost:8000 --model legal",
    ),
    "methods": ("loraprobe methods", "loraprobe methods ties arrow"),
    "cache": ("loraprobe cache", "loraprobe cache --clear --older 30"),
    "env": ("loraprobe env",),
    "lab": ("loraprobe lab --help",),
}


def epilog(name: str) -> str:
    """The examples of a command, a paragraph each."""
    return "\n\n".join(("Examples:", *(f"  {call}" for call in EXAMPLES[name])))
