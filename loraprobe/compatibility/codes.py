"""The stable codes of all findings, from codes.toml; scripts and `--allow` use them."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path

from loraprobe.compatibility.servers import FEATURES

# Of two adapters with such an error one has to be exchanged for another adapter of the base.
UNLIKE = ("task-type-mismatch", "architecture-mismatch", "shapes-differ", "kinds-differ")

# What they are about -> code -> its meaning.
SUBJECTS: Mapping[str, Mapping[str, str]] = {
    **tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8")),
    "What servers read (--serve)": {
        "serve-ok": "a server reads the file as it is",
        **{
            f"serve-{name}": f"a server does not read this: {f.what}"
            for name, f in FEATURES.items()
        },
    },
}
CODES: Mapping[str, str] = {
    code: text for group in SUBJECTS.values() for code, text in group.items()
}
