"""Findings that the files of adapters do not hold: of their cards, and of servers."""

from __future__ import annotations

from dataclasses import replace

from loraprobe.compatibility.serving import serving_issues
from loraprobe.errors import UsageError
from loraprobe.options import Options
from loraprobe.pipeline.audits import with_issues
from loraprobe.pipeline.examination import Examination
from loraprobe.pipeline.inputs import Inputs
from loraprobe.pipeline.licences import declared


def with_servers(
    examined: Examination, inputs: Inputs, options: Options, asks_base: bool
) -> Examination:
    """The findings with what the servers of --serve do not read in the file of one adapter.

    Raises UsageError for several adapters, and where the base is asked.
    """
    if len(inputs.given) > 1 or asks_base:
        raise UsageError(
            "--serve looks at the file of one adapter; give one, without --task and --probe. A "
            "merge is written so that servers read it: inspect its directory."
        )
    told = serving_issues(inputs.given[0], options.serve)
    return replace(examined, compatibility=with_issues(examined.compatibility, told))


def licensed(examined: Examination, inputs: Inputs) -> Examination:
    """The findings with the licences of the adapters' cards."""
    licences, issues = declared(inputs.given, inputs.base)
    found = with_issues(examined.compatibility, issues)
    return replace(examined, compatibility=found, licences=licences)
