"""`convert` writes one adapter again, as peft and servers read it: the same function in peft."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Unpack

from loraprobe import compatibility, hub
from loraprobe.adapters import Adapter, Source, common_targets, mended, portable
from loraprobe.adapters.experts import without_experts
from loraprobe.adapters.keys import PREFIX
from loraprobe.adapters.saving import config_of
from loraprobe.adapters.tensors import PICKLE, SAFETENSORS
from loraprobe.compatibility.serving import serve_commands, serving_issues
from loraprobe.errors import CompatibilityError, UsageError
from loraprobe.formatting import listing
from loraprobe.pipeline.audits import audit_of
from loraprobe.pipeline.commands import Outcome
from loraprobe.pipeline.examination import examine, with_issues
from loraprobe.pipeline.inputs import Adapters, Given, open_inputs
from loraprobe.pipeline.merges import Converted
from loraprobe.pipeline.session import Session
from loraprobe.records import Compatibility
from loraprobe.report.card import converted_card

# Warnings of which no exact copy follows: peft would load another function than is read here.
UNCERTAIN = ("base-copy", "weights-untargeted")


def convert(adapters: Adapters, **given: Unpack[Given]) -> Outcome:
    """One adapter with peft's keys, one safetensors file and, unless compact, one rank.

    base: compares a copy of an embedding or head that the file may hold. Raises CompatibilityError
    for what cannot be kept exactly: tensors of an unknown kind, an initialisation that changed the
    base.
    """
    session, inputs = Session.of("convert", **given), open_inputs(adapters, **given)
    options, written = session.options, given.get("written", ())
    if len(inputs.given) > 1:
        raise UsageError("convert rewrites one adapter; give one, or merge several with merge.")
    (original,) = inputs.given
    sound = replace(mended(original), extras=original.extras)  # extras must be known to be refused
    examined = examine([sound], inputs.base, "merge", session)
    found = compatibility.require(examined.compatibility)
    for issue in found.issues:
        open_ = issue.code in UNCERTAIN and issue.severity != "note"
        if open_ and issue.code not in options.allow:
            raise CompatibilityError(f"{issue.message} {issue.cure} [{issue.code}]", issue.cure)
    made = replace(mended(original), weights_file=None)
    made = portable(made) if options.rank_layout == "portable" else made
    targets = common_targets([original], without_experts(made.layout))
    place = written[0] if written else Path("OUT")
    made = replace(
        made, config=config_of(made, targets), source=Source(reference=str(place), path=place)
    )
    notes = [" ".join(_changes(original, made)) or "Nothing had to be changed."]
    # The work is done where a server cannot read a kind of adapter: that is no failure here.
    told = serving_issues(made, ["all"])
    told = [replace(i, severity="warning") if i.severity == "error" else i for i in told]
    serious = Compatibility(tuple(i for i in found.issues if i.severity != "note"))
    examined = replace(examined, compatibility=with_issues(serious, told), layers=())
    audit = audit_of(session, replace(inputs, adapters=[made]), examined, notes)
    card = hub.model_card(original) or converted_card(made, notes[0], serve_commands(made, "."))
    return Outcome(audit, Converted(made, card, original.source.path, targets))


def _changes(given: Adapter, made: Adapter) -> Iterator[str]:
    """What differs between a file and what is written instead, in sentences."""
    codes = {issue.code for issue in given.issues}
    if given.layout.keys() != made.layout.keys():
        yield f"The prefix {PREFIX!r}, which the keys had twice, stands once."
    if "unprefixed-keys" in codes:
        yield f"The keys have the prefix {PREFIX!r}, without which peft loads nothing."
    if given.weights_file is not None and given.weights_file.name == PICKLE:
        yield f"{PICKLE} became {SAFETENSORS}."
    ranks, rank = given.rank_range, made.rank_range
    if ranks != rank:
        yield f"Ranks {ranks[0]} to {ranks[1]} became {rank[0]}, filled up with zeros."
    if given.scaling_range != made.scaling_range:
        why = "rsLoRA's scaling" if given.config.get("use_rslora") else "The scaling"
        yield f"{why} is multiplied into B, so that lora_alpha equals r."
    lost = [extra.key for extra in given.extras if extra not in made.extras]
    if lost:
        yield f"Left out: {listing(lost[:3])}{f' and {len(lost) - 3} more' if lost[3:] else ''}."
    yield from (issue.message for issue in given.issues if issue.code == "tensors-unused")
