"""Cases of hostile input of `verify` and `convert`.

test_verify.py has the directories that were changed after loraprobe wrote them.
"""

import re
from pathlib import Path

import making
from adversarial import case, outcome
from adversarial.privacy import BOMB, limited
from adversarial.reading import adapter, factors

PAGE = "verify.md"


@case("verify-without-end")
def _(place: Path) -> str:
    out = place / "out"
    source = adapter(place, factors("a" * 60), target_modules=["a" * 60])
    outcome("merge", source, "--dtype", "float32", "-o", out)
    making.edit(out / "adapter_config.json", target_modules="((a|aa)+)+c")
    return outcome("verify", out)


@case("alias-bomb-in-our-card")
def _(place: Path) -> str:
    refs = making.saved_pair(place)
    outcome("merge", *refs, "-o", place / "out")
    card = place / "out" / "README.md"
    text = re.sub("  version: .*", "  version: *j", card.read_text())
    text = re.sub("  schema_version: .*", "  schema_version: 99", text)
    card.write_text(text.replace("---\n", f"---\n{BOMB}", 1))
    return limited("verify", place / "out")


@case("card-of-another-author")
def _(place: Path) -> str:
    card = "---\nlicense: mit\n---\n<script>x()</script><form action=http://e.vil>\n"
    (adapter(place) / "README.md").write_text(card)
    found = outcome("convert", place / "a", "-o", place / "o")
    made = (place / "o" / "README.md").read_text()
    theirs = "<script" in made or "<form" in made
    licence = "" if "license: mit" in made else ", the licence is lost"
    return "they stand in our card" if theirs else f"{found}, no markup of theirs{licence}"
