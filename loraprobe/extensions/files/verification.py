"""What `verify` found, as an answer and as plain data."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from loraprobe.adapters import layer_of, local_name
from loraprobe.adapters.names import kinds_of_modules, number_in
from loraprobe.extensions.files import FullModel
from loraprobe.extensions.files.contents import records as of_weights
from loraprobe.extensions.files.contents.records import Contents, ModuleContents, ModuleState
from loraprobe.formatting import clean, count, first_names, listing
from loraprobe.records import Command
from loraprobe.report.parts import TERMINAL, Answer, Line, Section, Table, text
from loraprobe.routing import Routed
from loraprobe.secrets import map_texts, public_text

MISSING = {  # what was not found -> what has to be filled in
    "source": "REF: the place of each adapter that it was made of, as it was then",
    "base": "BASE: the place of the base that was used",
    "prompts": "FILE: the place of each file of prompts that is named above",
}
COLUMNS = (
    text("check"),
    text("result"),
    text("what was seen", prose=True),
)
LOADED = {  # by the first of these files that is there
    "router.json": Routed.load_by_text,
    "composition.json": Routed.load,
    "config.json": FullModel.load,
}
RESULTS = {True: "ok", False: "failed", None: "cannot tell"}
KEPT = 0.999  # of a change: a rank that keeps less is told
NAMED = 4  # kinds of modules, or tensors, that a sentence names
MUCH = 0.5  # of a change: where rounding changes more of it, it is said what to do


@dataclass(frozen=True)
class Check:
    """One check of a merged or routed directory: whether it passed, and what was found.

    passed: None where it cannot be told, such as for a source that was not found. checked: whether
    all of a file was compared; the text of a card is free.
    """

    name: str
    passed: bool | None
    message: str
    checked: bool = True


@dataclass(frozen=True, repr=False)
class Verification:
    """All checks of one merged directory (`loraprobe verify`), and what was given for them.

    of, contents: the adapters by which its weights were explained, in place of its card, and what
    of them is in it.
    """

    directory: str
    checks: tuple[Check, ...]
    sources: tuple[str, ...] = ()
    base: str | None = None
    of: tuple[str, ...] = ()
    contents: Contents | None = None

    @property
    def passed(self) -> bool | None:
        """Whether everything holds; None where nothing differs and something cannot be told."""
        found = {check.passed for check in self.checks}
        return False if False in found else None if None in found else True

    def __repr__(self) -> str:
        return str(verification_answer(self))


def as_plain(verification: Verification) -> dict[str, Any]:
    """The fields of the document: each check with whether it passed and what was seen."""
    place = clean(local_name(verification.directory))
    checks = map_texts(verification.checks, lambda text: clean(public_text(text)))
    fields = {"directory": place, "verified": verification.passed, "checks": checks}
    if verification.contents is not None:
        fields["contents"] = map_texts(of_weights.as_plain(verification.contents), clean)
    return fields


def verification_sections(verification: Verification) -> list[Section]:
    """The answer, and a row a check."""
    answer = verification_answer(verification)
    if verification.contents is not None:
        return [Section("verdict", "Verdict", [(TERMINAL, answer)], concludes=True)]
    lines = [
        [c.name, RESULTS[c.passed] if c.checked else "not checked", c.message]
        for c in verification.checks
    ]
    return [
        Section("verdict", "Verdict", [(TERMINAL, answer)], concludes=True),
        Section("checks", "Checks", [(TERMINAL, Table(verification.directory, COLUMNS, lines))]),
    ]


def verification_answer(verification: Verification) -> Answer:
    """Whether the directory is what its card says, or what else it is, and what to do next."""
    if verification.contents is not None:
        return _answer_of_weights(verification, verification.contents)
    place = verification.directory
    if verification.passed:
        names = {check.name for check in verification.checks}
        load = next((load for name, load in LOADED.items() if name in names), "")
        step = Command("python" if load else "inspect", (place,), text=load)
        label = "in Python" if step.in_python else "next"
        return Answer("verified", "VERIFIED: this is what its card describes.", ((label, step),))
    given, base = (place, *verification.sources), verification.base
    open_ = [check for check in verification.checks if check.passed is verification.passed]
    why: list[Line] = [("why", f"{check.name}: {check.message}") for check in open_[:2]]
    if verification.passed is False:
        fix = "Get it again from its origin, or make it again; then verify it again."
        headline = "NOT VERIFIED: do not use it as what its card says."
        again = ("next", Command("verify", given, (("--base", base),) if base else ()))
        return Answer("not verified", headline, (*why[:1], ("fix", fix), again))
    names = {check.name.partition(" ")[0] for check in open_}
    fill: list[Line] = [("fill in", text) for name, text in MISSING.items() if name in names]
    if fill:
        places = {"source": "REF", "prompts": "FILE"}
        adapters = (*given, *(word for name, word in places.items() if name in names))
        base = "BASE" if "base" in names else base
        options = (("--base", base),) if base else ()
        why += [("next", Command("verify", adapters, options)), *fill]
    return Answer(
        "inconclusive", "CANNOT TELL whether this is what its card describes.", tuple(why)
    )


# ---- by its weights ------------------------------------------------------------------------------


def checks_of(contents: Contents) -> tuple[Check, ...]:
    """The checks that say what is in a merge: one for each adapter, the base and the names."""
    checks = list[Check]()
    for at, name in enumerate(contents.adapters):
        own = [part for part in contents.parts if part.weights[at] is not None]
        held = [part for part in own if part.state(contents.weights) == "as made"]
        message = f"{contents.weights[at]:.2f} of it in {len(held)} of {count(len(own), 'module')}."
        right = len(held) == len(own) and contents.as_wanted
        checks.append(Check(name, None if contents.holds is None else right, message))
    same = contents.others - len(contents.differences)
    if contents.full_model:
        message = f"{same} of the {count(contents.others, 'other tensor')} are the base's."
        checks.append(
            Check("base", contents.verdict != "other-base" and same == contents.others, message)
        )
        message = f"{count(len(contents.wrapped), 'tensor')} with names of peft."
        checks.append(Check("names", not contents.wrapped, message))
    named = contents.verdict.replace("-", " ").upper()
    return (*checks, Check("verdict", contents.holds, f"{named}."))


def _answer_of_weights(verification: Verification, contents: Contents) -> Answer:
    """What is in a merge, what is not, and the command that makes it right."""
    place = verification.directory
    lines: list[Line] = [*_lines(contents)]
    decision = {True: "verified", False: "not verified", None: "inconclusive"}[contents.holds]
    if contents.holds:
        load = FullModel.load if contents.full_model else "PeftModel.from_pretrained(base, {0})"
        lines.append(("in Python", Command("python", (place,), text=load)))
    else:
        given, wanted = verification.of, contents.wanted or (1.0,) * len(contents.adapters)
        base = (("--base", verification.base),) if verification.base else ()
        if contents.verdict == "scaled" and contents.wanted is None:
            found = ",".join(f"{weight:.4g}" for weight in contents.weights)
            options = (*base, *(("--of", one) for one in given), ("--weights", found))
            lines.append(("if wanted", Command("verify", (place,), options)))
        target = ("--full-model", "DIR") if contents.full_model else ("-o", "DIR")
        weights = ",".join(f"{weight:g}" for weight in wanted)
        how = (("--method", "task_arithmetic"), ("--weights", weights))
        lines.append(("next", Command("merge", given, (*how, *base, target))))
        lines.append(("fill in", "DIR: where the merge is written"))
    return Answer(decision, _headline(contents), tuple(lines))


def _headline(contents: Contents) -> str:
    """The verdict, and what it means here."""
    names, parts = listing(contents.adapters), len(contents.parts)
    where = f" of {count(parts, 'module')}"
    one = len(contents.adapters) == 1
    added = "it adds" if one else "they add"
    match contents.verdict:
        case "exact":
            return f"EXACT: this is {_sum(contents)}."
        case "rounded":
            dtype, share = contents.through or contents.dtype, contents.share_of_rounding
            return (
                f"ROUNDED: this is {_sum(contents)}; {dtype} changed {share:.1%} of what {added}."
            )
        case "scaled":
            wanted = contents.wanted or (1.0,) * len(contents.adapters)
            return f"SCALED: this is {_sum(contents)}, not {_weighted(contents.adapters, wanted)}."
        case "partly":
            wrong = parts - contents.count("as made")
            if contents.absent:
                return f"PARTLY: nothing of {listing(contents.absent)} is in this merge."
            if wrong:
                return f"PARTLY: {wrong}{where} are not what {names} {'makes' if one else 'make'}."
            if contents.kept < KEPT:
                return f"PARTLY: its rank keeps {contents.kept:.1%} of what {added}."
            return (
                f"PARTLY: {names} {'is' if one else 'are'} in it, and something else was changed."
            )
        case "other-base":
            held = f"{names} {'is' if one else 'are'} in it"
            return f"OTHER BASE: {held}, but the base below is not the one given."
        case "not-linear":
            return f"NOT LINEAR: this was made of {names} by a method that is no weighted sum."
        case _:
            if contents.is_base:
                return f"NOT OF THESE: this is the base itself; nothing of {names} is in it."
            return f"NOT OF THESE: {names} {'does' if one else 'do'} not explain this merge."


def _weighted(names: Sequence[str], weights: Sequence[float]) -> str:
    """0.50 legal + 0.50 medical."""
    return " + ".join(f"{weight:.2f} {name}" for name, weight in zip(names, weights, strict=True))


def _sum(contents: Contents) -> str:
    return ("the base + " if contents.full_model else "") + _weighted(
        contents.adapters, contents.weights
    )


def _lines(contents: Contents) -> Iterator[tuple[str, str]]:
    """The reasons of a verdict, those first that change most what to do; then the cures."""
    states, total = contents.states, len(contents.parts)
    if contents.wrapped:
        yield (
            "names",
            f"{count(len(contents.wrapped), 'tensor')} have the names that peft puts around them, "
            f"such as {contents.wrapped[0]}; transformers starts such weights anew at random",
        )
    if contents.holds:
        yield "made", _held(contents)
        through = contents.through
        if through:
            yield "watch", f"its numbers went through {through}, though it is stored in float32"
        if contents.share_of_rounding > MUCH:
            yield "watch", "most of the change is lost in rounding: merge and save it in float32"
        return
    for at, name in enumerate(contents.adapters):
        if name in contents.absent and contents.verdict == "partly":
            yield "lacks", f"{name} has the weight {contents.weights[at]:.2f} in every module"
    rows: tuple[tuple[ModuleState, str, str], ...] = (
        ("lacking", "lacks", "were left as they are in the base"),
        ("missing", "lacks", "are missing, or have another shape"),
        ("scaled", "scaled", "have other weights than the rest"),
    )
    for state, label, told in rows:
        parts = states.get(state, ())
        if parts and (contents.verdict != "not-of-these" or state == "missing"):
            more = ""
            if state == "scaled":
                more = f": {_weighted(contents.adapters, [w or 0.0 for w in parts[0].weights])}"
            yield label, f"{_where(parts, total)} {told}{more}"
    if changed := states.get("changed", ()):
        yield from _about_rest(contents, changed)
    yield from _about_base(contents)
    if contents.kept < KEPT:
        yield "why", f"it was cut to a rank that keeps {contents.kept:.1%} of the change"
    if contents.verdict == "scaled":
        yield "why", _why_scaled(contents)
    yield "fix", _fix(contents)


def _held(contents: Contents) -> str:
    told = f"in all {count(len(contents.parts), 'module')} that adapters change"
    if not contents.full_model or not contents.others:
        return told
    return f"{told}; the other {count(contents.others, 'tensor')} are the base's"


def _where(parts: Sequence[ModuleContents], total: int) -> str:
    """12 of 210 modules (up_proj and down_proj, in layers 20 to 29)."""
    paths = [part.name.removesuffix(".weight") for part in parts]
    kinds = first_names(kinds_of_modules(paths), NAMED)
    layers = sorted(
        {n for p in paths if (n := number_in(layer_of(p).rpartition(".")[2])) is not None}
    )
    if len(parts) == 1:
        return f"1 of {count(total, 'module')} ({paths[0]})"
    span = ""
    if layers:
        whole = layers == list(range(layers[0], layers[-1] + 1))
        span = f", in layers {layers[0]} to {layers[-1]}" if whole else f", in {len(layers)} layers"
        span = f", in layer {layers[0]}" if len(layers) == 1 else span
    return f"{len(parts)} of {count(total, 'module')} ({kinds}{span})"


def _about_rest(contents: Contents, changed: Sequence[ModuleContents]) -> Iterator[tuple[str, str]]:
    """What is in modules beside the adapters."""
    forms, n = contents.forms, len(contents.parts)
    size = sorted(form.size for form in forms)[len(forms) // 2] if forms else 0.0
    if contents.verdict == "other-base":
        bits = [form.bits for form in forms if form.bits]
        looks = ""
        if 2 * len(bits) > len(forms):
            looks = f"; they look as a base that was quantised to {bits[0]} bits and dequantised"
        yield (
            "why",
            f"the weights below differ by {size:.1%} of the base's norm, {contents.ratio:.3g} "
            f"times what the adapters change{looks}",
        )
        return
    where, share = _where(changed, n), contents.share_of_rest
    if contents.verdict == "not-linear":
        yield "made", f"as a sum it would be about {_weighted(contents.adapters, contents.weights)}"
        yield "why", f"{share:.0%} of the change of {where} is no weighted sum of the adapters'"
        zeros = sorted(form.zeros for form in forms)[len(forms) // 2]
        if contents.most("crossed"):
            yield (
                "why",
                "products of one adapter's B and another's A explain it: the factors were added "
                "and not the deltas, as by peft's linear",
            )
        elif zeros > of_weights.SPARSE:
            yield (
                "why",
                f"{zeros:.0%} of the entries that a sum would move did not move: entries were "
                "dropped, as by TIES, DARE and DELLA",
            )
        elif contents.most("elected"):
            yield (
                "why",
                "a sum explains the entries in whose sign the adapters agree, and no others: signs "
                "were elected, as by TIES",
            )
        elif contents.most("turned"):
            yield "why", "the base itself has another weight than 1, as where models are averaged"
        return
    if contents.verdict == "not-of-these":
        yield "why", f"{share:.0%} of the change of {where} is not theirs"
        return
    yield "beyond", f"{where} hold something else too: {share:.1%} of their change"
    if forms and not contents.most("full") and all(form.size > 0 for form in forms):
        yield "why", "the rest has few directions, as another LoRA or single entries have"


def _about_base(contents: Contents) -> Iterator[tuple[str, str]]:
    """What differs in tensors that no adapter changes."""
    resized = [one for one in contents.differences if one.rows]
    other = [one for one in contents.differences if not one.rows]
    for one in resized[:1]:
        assert one.rows is not None
        base, made = one.rows
        yield (
            "why",
            f"{one.name} has {made} rows, and the base's {base}: the vocabulary was resized"
            + (", and rows that both have differ" if one.size else ""),
        )
    if not other:
        return
    label = "why" if contents.verdict == "other-base" else "beyond"
    names = first_names([one.name.removesuffix(".weight") for one in other], NAMED)
    if not contents.full_model:
        yield label, f"{count(len(other), 'module')} in no adapter: {names}"
        return
    lost = [one for one in other if one.size is None]
    sizes = sorted(one.size for one in other if one.size is not None and math.isfinite(one.size))
    most = f", by {sizes[len(sizes) // 2]:.1%} of their norm" if sizes else ""
    gone = f", {len(lost)} of which are missing or of another shape" if lost else ""
    head = "; a head that was the embedding is another one" if _own_head(contents) else ""
    if any(one.tied for one in other):
        head = "; the head is tied to an embedding that was changed: untie it before merging"
    yield (
        label,
        f"{len(other)} of {count(contents.others, 'tensor')} that no adapter changes differ from "
        f"the base{most}{gone}: {names}{head}",
    )


def _own_head(contents: Contents) -> bool:
    return any(one.own_head for one in contents.differences)


def _why_scaled(contents: Contents) -> str:
    """What usually makes such weights of adapters."""
    weights, ranks = contents.weights, contents.ranks

    def all_near(values: Sequence[float]) -> bool:
        pairs = zip(weights, values, strict=True)
        return all(abs(w - value) <= 0.02 * max(value, 0.01) for w, value in pairs)

    if all_near([2.0] * len(weights)):
        return "twice: it was probably merged into a model that already held it"
    if len(set(ranks)) == 1 and all_near([rank**-0.5 for rank in ranks]):
        return "1 / sqrt(rank): use_rslora was probably ignored"
    if len(set(ranks)) == 1 and all_near([rank**0.5 for rank in ranks]):
        return "sqrt(rank): use_rslora was probably assumed"
    if all_near([1.0 / scaling for scaling in contents.scalings]):
        return "1 / (lora_alpha / rank): lora_alpha was probably ignored"
    return "another lora_alpha, another rank, or weights of a merge"


def _fix(contents: Contents) -> str:
    """What to do."""
    match contents.verdict:
        case "not-of-these" if contents.is_base and contents.wrapped:
            return "save what merge_and_unload() returns, not the model with the adapter beside it"
        case "not-of-these" if contents.is_base:
            return "save what merge_and_unload() returns; the model it is called on stays as it is"
        case "not-of-these":
            return "find the adapters that were merged; these, or this base, are not what it has"
        case "other-base":
            return "merge into the base in the precision in which it was published"
        case "not-linear":
            return "whether it is right cannot be told from weights: evaluate it"
        case "scaled":
            return "set lora_alpha and use_rslora as in training, or merge again"
        case _:
            return "merge again, all modules of all adapters at once"
