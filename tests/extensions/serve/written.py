"""What the documentation says of servers, from their tables."""

from pathlib import Path

from loraprobe.extensions.serve.serving import FEATURES, OK, RULES, SERVERS

DOCS = Path(__file__).parents[3] / "docs"
RULES_BELOW = "\n## What each server reads\n"  # what follows on docs/serving.md is generated


def serving_page() -> str:
    """docs/serving.md: its own text, then servers and rules as tables."""
    text = (DOCS / "serving.md").read_text(encoding="utf-8").partition(RULES_BELOW)[0]
    lines = ["| server | version | read on | source |", "| --- | --- | --- | --- |"]
    for name, server in SERVERS.items():
        lines.append(f"| {name} | {server.version} | {server.checked} | {server.source} |")
    lines += ["", f"| the file has | {' | '.join(SERVERS)} |", "| --- |" + " --- |" * len(SERVERS)]
    effects = {(feature, name): rest for feature, names, *rest in RULES for name in names}
    for feature in dict.fromkeys(feature for feature, *_ in RULES):
        cells = []
        for name in SERVERS:
            effect, fixed = effects.get((feature, name), ("reads", ""))
            cells.append(f"{effect} before {fixed}" if fixed else effect)
        lines.append(f"| {FEATURES[feature].what} | {' | '.join(cells)} |")
    return text + RULES_BELOW + "\n" + "\n".join(lines) + "\n"


UNREAD = {f"serve-{name}": f"a server does not read this: {f.what}" for name, f in FEATURES.items()}
CODES = {"What servers read (--serve)": {OK: "a server reads the file as it is", **UNREAD}}
PAGES = {"serving.md": serving_page}
