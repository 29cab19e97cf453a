"""The options that say how a command prints its result and where it writes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from loraprobe.declarations import OUTPUT, option


@dataclass(frozen=True)
class OutputOptions:
    """How a command prints its result and where it writes."""

    target: Path | None = option(
        None, OUTPUT, "Directory to write.", flag="--output", short="-o", metavar="DIR"
    )
    overwrite: bool = option(False, OUTPUT, "Replace an existing output.")
    push: str | None = option(
        None,
        OUTPUT,
        "Upload the directory to this repository of the Hub, private unless --public.",
        metavar="OWNER/NAME",
    )
    public: bool = option(False, OUTPUT, "Let everybody read what --push uploads.")
    json: bool = option(False, OUTPUT, "Print one JSON document on standard output.")
    html: Path | None = option(None, OUTPUT, "Also write the report to this HTML file.")
    dry_run: bool = option(
        False, OUTPUT, "Print what the run would take (systems, time, memory), and stop."
    )
    markdown: bool = option(False, OUTPUT, "Print the result as Markdown, for a pull request.")
    save_samples: Path | None = option(
        None, OUTPUT, "Write every question with what each system answered to this file (JSONL)."
    )
    explain: bool = option(False, OUTPUT, "Print every reason, probe and figure.")
    quiet: bool = option(False, OUTPUT, "No progress or warnings; one line of result.", short="-q")
    exit_zero: bool = option(False, OUTPUT, "Exit 0 whatever the verdict says.")
