"""The stable codes of all findings, which scripts and `--allow` use."""

from __future__ import annotations

from collections.abc import Mapping

from loraprobe.compatibility.servers import FEATURES
from loraprobe.findings import SUBJECTS as FINDINGS

# Of two adapters with such an error one has to be exchanged for another adapter of the base.
UNLIKE = ("task-type-mismatch", "architecture-mismatch", "shapes-differ", "kinds-differ")

# What they are about -> code -> its meaning.
SUBJECTS: Mapping[str, Mapping[str, str]] = {
    **{
        subject: {code: row.meaning for code, row in group.items()}
        for subject, group in FINDINGS.items()
    },
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
