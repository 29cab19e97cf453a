"""The reasons of a verdict: their codes and sentences, from codes.toml, and what each one measures.

Reasons about weights decide nothing. Their thresholds follow from what the figure does to a sum of
two updates; none is fitted.
"""

from __future__ import annotations

import math
import string
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from loraprobe import defaults
from loraprobe.defaults import (
    ALL_CUT,
    COMPRESSION_LIMIT,
    CUT_MATTERS,
    EQUAL_COSINE,
    FAMILIAR,
    FEWEST_ANSWERS,
    FEWEST_ITEMS,
    KNOWN,
    LOSS,
    OPPOSED_COSINE,
    PLAIN_TOKENS,
    SAID_OTHERWISE,
    TEMPLATE_MATTERS,
    UNFAMILIAR,
    WORKED_TOKENS,
)
from loraprobe.formatting import count, gained, listing, signed
from loraprobe.records import (
    ALONE,
    BASELINES,
    COMPOSITIONS,
    FORMS,
    QUESTION,
    STEPS,
    TOGETHER,
    Decision,
    EvaluationRecords,
    GuardScore,
    Measurement,
    Reason,
    Sample,
    Score,
    Verdict,
    display_name,
    judged_elsewhere,
)
from loraprobe.records.measurements import Z95
from loraprobe.verdict.evidence import (
    FORM,
    GUESSING,
    Candidate,
    Evidence,
    criterion,
    is_known,
    is_unknown,
    ranked,
)
from loraprobe.wiring import extensions

# ---- codes ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Code:
    """What a code means, and where the answer tells it, if anywhere.

    line: "why" explains a decision that is not `likely`, "watch" is counted as a warning, "lacks"
    says what the items do not have. sure: it tells how sure the verdict is. severity: that of a
    reason that does not decide. source: where its threshold comes from. text: its sentence, with
    what `reason_of` fills in in braces.
    """

    meaning: str
    line: Literal["why", "watch", "lacks", ""] = ""
    sure: bool = False
    severity: Literal["decisive", "warning", "info"] = "info"
    source: str = ""
    text: str = "{text}"


@dataclass(frozen=True)
class WeightWarning:
    """A warning about weights: the diagnostic, the threshold of its whole-adapter value, the text.

    sense: whether a value warns above or below the threshold, or as a ratio that exceeds it either
    way. `digits` of the value are printed. compare: what to compare with, where nothing composed
    was measured. space: the only one in which a merge is warned of; "" for all.
    """

    code: str
    diagnostic: str
    threshold: float
    sense: Literal["above", "below", "ratio"]
    text: str
    compare: str = ""
    digits: int = 2
    space: str = ""

    def distance(self, value: float) -> float:
        """How far a value goes in the sense of the warning."""
        if self.sense == "ratio" and value < 1:
            return 1 / value if value > 0 else math.inf
        return -value if self.sense == "below" else value

    def shown(self, value: float) -> str:
        """The value as it is printed; a ratio as that of the larger to the smaller."""
        if self.sense == "ratio":
            return f"{self.distance(value):,.1f}"
        return f"{value:z.{self.digits}f}"


def _with(rows: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """Rows of a table with those of an extension: each behind the one that it names by `after`,
    or last."""
    for name, row in more.items():
        names = [*rows]
        at = names.index(row["after"]) + 1 if "after" in row else len(names)
        before, behind = ({one: rows[one] for one in part} for part in (names[:at], names[at:]))
        rows = {**before, name: {k: v for k, v in row.items() if k != "after"}, **behind}
    return dict(rows)


def _read() -> dict[str, Any]:
    """codes.toml with the rows that the files of extensions add to its tables."""
    files = [Path(__file__).with_name("codes.toml")]
    files += [one.codes for one in extensions() if one.codes is not None]
    read, *added = (tomllib.loads(file.read_text(encoding="utf-8")) for file in files)
    for one in added:
        for table in ("text", "sources"):
            read[table] |= one.get(table, {})
        for table in ("by-effect", "by-rule"):
            read[table] = _with(read[table], one.get(table, {}))
        for decision, rows in one.get("headlines", {}).items():
            read["headlines"][decision] = _with(read["headlines"][decision], rows)
    return read


_READ = _read()
_SOURCES = {key: text.format(**vars(defaults)) for key, text in _READ["sources"].items()}
CODES: Mapping[str, Code] = {
    name: Code(
        **{**row, "source": _SOURCES.get(row.get("source", name), "")},
        text=_READ["text"].get(name, Code.text),
    )
    for group in ("by-effect", "by-rule")
    for name, row in _READ[group].items()
}
HEADLINES: Mapping[str, Mapping[str, Mapping[str, str]]] = _READ["headlines"]
WEIGHT_WARNINGS = tuple(
    WeightWarning(code, **{**row, "threshold": getattr(defaults, row["threshold"])})
    for code, row in _READ["weights"].items()
)
_PLACES = {name: place for place, name in enumerate(_READ["by-effect"])}


def effect_rank(code: str) -> int:
    """The place of a code: a smaller one changes more of what a person does."""
    return _PLACES.get(code, len(_PLACES))


class _Sentences(string.Formatter):
    """Fills in sentences; a field `system` is given as people call it."""

    def get_field(self, name: str, args: Any, kwargs: Any) -> Any:
        value, first = super().get_field(name, args, kwargs)
        return (display_name(value) if name.endswith("system") else value), first


_SENTENCES = _Sentences()


def reason_of(
    code: str,
    value: float | None = None,
    threshold: float | None = None,
    *,
    decisive: bool = False,
    source: str = "",
    **words: object,
) -> Reason:
    """A reason with the sentence, the severity and the source of its code.

    words: what its sentence names beside value and threshold; it need not name all. decisive: it
    carries the decision. source: where its code has none.
    """
    known = CODES[code]
    message = _SENTENCES.format(known.text, value=value, threshold=threshold, **words)
    severity = "decisive" if decisive else known.severity
    return Reason(code, message, value, threshold, source or known.source, severity)


# ---- compositions --------------------------------------------------------------------------------


def best_baseline(candidate: Candidate) -> str:
    """The best baseline's name, with its form if that differs from the composition's."""
    if candidate.against_part == candidate.part:
        return candidate.against
    return f"{candidate.against} {FORM[candidate.against_part]}"


def about_candidate(best: Candidate, decision: Decision, evidence: Evidence) -> Iterator[Reason]:
    """Why a composition is likely to work, or not: each criterion that it has to meet."""
    yield _about_gain(best, decision)
    if best.is_binding(best.enough):
        yield few_items(best.gain.n, best.gain.clusters, decisive=True)
    if best.checked is not None and best.is_binding(best.confirmed):
        figures = best.checked.low, best.checked.threshold
        yield reason_of("answers-normalised", *figures, decisive=True, gain=best.checked)
    # A first round asks controls only where a composition gains: else nothing depends on them.
    if best.controls or evidence.level != "pilot" or best.is_binding(best.beats_controls):
        yield _about_controls(best)
    yield from (_about_share_kept(best, task, evidence.retention) for task in best.kept)


def _about_gain(best: Candidate, decision: Decision) -> Reason:
    """What the most promising composition gains over the best of base and singles."""
    gain, outcome = best.gain, best.gain.outcome
    code, value = {
        "likely": ("gain-beyond-margin", gain.low),
        "unlikely": ("gain-below-margin", gain.high),
        "inconclusive": ("gain-undecided", gain.value),
    }[outcome]
    unmet = {
        f"{questions_observed(gain.n, gain.clusters)} are too few to rely on": best.enough,
        "no control was scored": "likely" if best.controls else "inconclusive",
        "controls do not confirm it": best.beats_controls if best.controls else "likely",
        "not every skill is kept": best.retains,
        "the metric that the gold answers need does not confirm it": best.confirmed,
        "a guard is lost" if best.safe == "unlikely" else "a guard is open": best.safe,
    }
    return reason_of(
        "gain-with-reservation" if outcome == "likely" != decision else code,
        value,
        gain.threshold,
        decisive=outcome == decision,
        gain=f"{display_name(best.system)}, {FORM[best.part]}, against {best_baseline(best)}: "
        f"{gain} on {count(gain.n, 'item')}",
        reservations=listing([text for text, said in unmet.items() if said != "likely"]),
        would_decide=gain.would_decide(),
    )


def baseline_in_words(system: str) -> str:
    """A baseline in words at the start of a sentence."""
    return "The base alone" if system == "base" else f"{system} alone"


def questions_observed(n: int, clusters: int) -> str:
    """The number of questions, with that of their clusters if that is smaller."""
    if clusters < n:
        return f"{count(clusters, 'cluster')} of questions ({count(n, 'question')})"
    return count(n, "question")


def few_items(n: int, clusters: int, decisive: bool) -> Reason:
    """That so few items decide little."""
    asked = questions_observed(n, clusters)
    few, least = float(clusters), float(FEWEST_ITEMS)
    return reason_of("few-items", few, least, decisive=decisive, questions=asked)


def about_other_form(other: Candidate) -> Reason:
    """What the best composition gains on the form that the decision is not about."""
    tail = {
        "likely": "it gains",
        "unlikely": f"a gain below {other.gain.threshold:.2f}",
        "inconclusive": f"which leaves open whether it gains {other.gain.threshold:.2f}",
    }[other.gain.outcome]
    fails = {
        "it loses a guard": other.safe,
        "it loses a skill": other.retains,
        "a control does as well": other.beats_controls if other.controls else "likely",
    }
    if failed := [text for text, said in fails.items() if said == "unlikely"]:
        tail += f"; {listing(failed)}"
    elif other.gain.outcome == "inconclusive":
        tail += other.gain.would_decide()
    return reason_of(
        "plain-form" if other.part == QUESTION else "step-by-step-form",
        other.gain.value,
        other.gain.threshold,
        best=f"{display_name(other.system)}: {other.gain} against {best_baseline(other)}, {tail}",
    )


def _about_controls(best: Candidate) -> Reason:
    """Whether the composition beats a shrunk single adapter and random partners."""
    binding = best.is_binding(best.beats_controls)
    if not best.controls:
        return reason_of("controls-not-run", decisive=binding)
    name, nearest = min(
        best.controls.items(),
        key=lambda pair: (pair[1].outcome == "likely", pair[1].value, pair[0]),
    )
    kind, _, single = name.partition(":")
    control = {
        "random-partner": "a random partner of the same size",
        "shrunk": f"{single} alone, only shrunk",
    }.get(kind, f"{kind}, a control")
    fails = best.gain.outcome == "unlikely"
    if nearest.outcome == "likely" or (fails and nearest.low > 0):
        code = "controls-beaten"
    else:
        code = "partner-adds-nothing"
        control = "A" + control[1:] if kind == "random-partner" else control + ","
    decided = fails or nearest.outcome == "unlikely"  # more items change nothing
    return reason_of(
        code,
        nearest.low,
        nearest.threshold,
        decisive=binding and code == "partner-adds-nothing",
        system=best.system,
        control=control,
        difference=nearest,
        would_decide="" if decided else nearest.would_decide(),
    )


def _about_share_kept(best: Candidate, task: str, asked: float) -> Reason:
    """How much of a task's specialist the composition keeps, of what is asked."""
    share, binding = best.kept[task], best.is_binding(best.retains)
    if share is None:
        return reason_of("retention-undefined", None, asked, decisive=binding, task=task)
    kept, lost = share.low >= asked, share.outcome == "unlikely"
    return reason_of(
        "retention-kept" if kept else "retention-lost" if lost else "retention-undecided",
        share.high if lost else share.low,
        asked,
        decisive=binding and not kept,
        task=task,
        best=best,
        share=share,
        would_decide=share.would_decide(),
    )


def about_guards(evidence: Evidence, best: Candidate) -> list[Reason]:
    """What every system that was asked guards makes of them. best: the leading composition."""
    codes = {"likely": "guard-kept", "unlikely": "guard-lost", "inconclusive": "guard-open"}
    found = []
    for row in evidence.measured.guards:
        ends = {"likely": row.ci95[0], "unlikely": row.ci95[1]}
        value, binding = ends.get(row.outcome, row.difference), best.is_binding(best.safe)
        decisive = binding and (row.system, row.outcome) == (best.system, best.safe)
        code, told = codes[row.outcome], on_guard(row)
        found.append(reason_of(code, value, -row.margin, decisive=decisive, told=told))
    idle = {
        row.task: reason_of("guard-idle", row.base, row.margin, task=row.task)
        for row in evidence.measured.guards
        if row.metric != LOSS and row.base <= row.margin
    }
    return [*found, *idle.values()]


def on_guard(row: GuardScore) -> str:
    """What a system makes of a guard, as a sentence without its full stop."""
    verb = {"likely": "keeps", "unlikely": "loses", "inconclusive": "may lose"}[row.outcome]
    nats, digits = (" nats a token", 3) if row.metric == LOSS else ("", 2)
    gap = gained(row.difference, row.ci95, digits, -row.margin)
    told = (
        f"{display_name(row.system)} {verb} {row.task}: {row.value:z.{digits}f}{nats} against "
        f"{row.base:z.{digits}f} for the base, {gap} on {count(row.n, 'item')}, where "
        f"{row.margin:g} may be lost"
    )
    if row.outcome != "inconclusive":
        return told
    return f"{told}; {criterion(row.estimate, -row.margin, '--guard-margin').more()} would decide"


def about_compression(candidate: Candidate, decisive: bool, limits: bool) -> Reason:
    """How much of its delta a composition lost to its rank.

    decisive: every composition lost so much that no method was tested. limits: --rank was given,
    and what was measured at it is not advised; --rank auto keeps as much as a file may.
    """
    error, system = candidate.compression_error or 0.0, candidate.system
    so = ", so the method was not tested" if decisive else ""
    lost = error, COMPRESSION_LIMIT
    advice = ": give a higher --rank" if limits else ""
    return reason_of(
        "compression-lost", *lost, decisive=decisive, system=system, so=so, advice=advice
    )


def about_chain(chain: Candidate, best: Candidate | None, decisive: bool = False) -> Reason:
    """What a chain gains, which is the alternative to composing weights.

    best: of the compositions; None where none was asked. decisive: where some were, the chain is
    shown to be better than everything else; where none was, it keeps the case open.
    """
    codes = {"likely": "chain-gains", "unlikely": "chain-fails", "inconclusive": "chain-undecided"}
    return reason_of(
        "chain-outdoes" if decisive and best else codes[chain.gain.outcome],
        chain.gain.low,
        chain.gain.threshold,
        decisive=decisive,
        chain=chain,
        beside="" if best is None else f"; {display_name(best.system)} {signed(best.gain.value)}",
    )


# ---- weights -------------------------------------------------------------------------------------


def about_weights(evidence: Evidence) -> Iterator[Reason]:
    """One reason for each warning, about the adapters whose value exceeds its threshold most.

    Nothing warns where a merge was measured to gain. Norms that were made equal before composing
    give no warning, and neither does the common seed of nearly equal updates. Where no pair is
    redundant or opposed, one more reason gives the cosine that is farthest from 0.
    """
    whole = [m for m in evidence.diagnostics if m.module is None and m.value is not None]
    alike = {m.adapters for m in whole if m.name == "cosine" and (m.value or 0.0) > EQUAL_COSINE}
    equal = evidence.duplicates
    yield from (reason_of("same-adapter", 1.0, 1.0, names=listing(pair)) for pair in equal)
    spared = {
        "norm-disparity": {m.adapters for m in whole if evidence.balanced},
        "shared-initialisation": alike,
        "ill-conditioned": alike,
        "nearly-equal-updates": {m.adapters for m in whole if tuple(sorted(m.adapters)) in equal},
    }
    gains = _a_merge_gains(evidence)
    for warning in WEIGHT_WARNINGS:
        if gains and CODES[warning.code].line == "watch":
            continue
        if warning.space not in ("", evidence.space):
            continue
        limit = warning.distance(warning.threshold)
        beyond = [
            m
            for m in whole
            if m.name == warning.diagnostic
            and warning.distance(m.value or 0.0) > limit
            and m.adapters not in spared.get(warning.code, ())
        ]
        if beyond:
            yield _about_worst(warning, beyond, evidence)
    cosines = [m.value or 0.0 for m in whole if m.name == "cosine" and len(m.adapters) == 2]
    if cosines and min(cosines) >= OPPOSED_COSINE and max(cosines) <= EQUAL_COSINE:
        farthest = max(cosines, key=abs)
        yield reason_of("unrelated-updates", farthest, EQUAL_COSINE, opposed=OPPOSED_COSINE)


def _a_merge_gains(evidence: Evidence) -> bool:
    """Whether some merge scores more than is asked for, and keeps every skill."""
    loses = {
        row.system
        for row in evidence.measured.scores
        if row.retention is not None and row.retention < evidence.retention
    }
    merges = {*evidence.systems(("merge",))} - loses
    gains = evidence.measured.gains
    return any(row.system in merges and row.difference > evidence.margin for row in gains)


def _about_worst(
    warning: WeightWarning, beyond: Sequence[Measurement], evidence: Evidence
) -> Reason:
    """The reason of one warning, about the worst of the measurements beyond its threshold."""
    worst = max(beyond, key=lambda m: (warning.distance(m.value or 0.0), m.adapters))
    value, names = float(worst.value or 0.0), worst.adapters
    text = warning.text.format(who=listing(names), value=warning.shown(value))
    whole = [m for m in evidence.diagnostics if m.module is None and m.name == "norm"]
    norms = {m.adapters[0]: m.value for m in whole if m.value is not None}
    if warning.code == "norm-disparity" and all(name in norms for name in names):
        small, large = sorted(names, key=norms.__getitem__)
        times = f"{warning.shown(value)} times larger"
        text = f"{small} may hardly show in a merge, because {large} is {times}"
        if _answers_nothing(evidence, small):
            text += "; alone it answers nothing here"
    if warning.compare and not evidence.systems(COMPOSITIONS):
        text += f": {warning.compare}"
    if len(beyond) > 1:
        kind = "pair" if len(names) > 1 else "adapter"
        text += f"; it is the worst of {count(len(beyond), kind)}"
    return reason_of(warning.code, value, warning.threshold, text=f"{text}.")


def _answers_nothing(evidence: Evidence, adapter: str) -> bool:
    """Whether an adapter was asked, and is shown to answer neither the question nor a hop."""
    least = evidence.guessing + evidence.tie
    rows = [row for row in evidence.measured.scores if row.system == adapter]
    return bool(rows) and not evidence.losses and all(row.ci95[0] <= least for row in rows)


# ---- what base and adapters know -----------------------------------------------------------------


def about_hops(evidence: Evidence) -> Iterator[Reason]:
    """One reason for each hop of one task: the system that answers it best, and the base."""
    for hop, systems in evidence.hops.items():
        held = {n: s.value if s.contains is None else s.contains for n, s in systems.items()}
        best = min(systems, key=lambda name: (-systems[name].value, -held[name], name))
        value, who = systems[best].value, "the base" if best == "base" else best
        text = f"Hop {hop}: {who} answers best, {value:.2f}"
        if held[best] - value > SAID_OTHERWISE:
            text += f", and the answer stands in {held[best]:.2f} of its replies"
        if held[best] == 0:
            text = f"Hop {hop} is answered by no adapter"
            text += " and not by the base" if "base" in systems else ""
        elif "base" in systems and best != "base":
            text += f"; the base {systems['base'].value:.2f}"
        code = "hop-known" if is_known(systems[best]) else "hop-in-doubt"
        code = "hop-unknown" if all(map(is_unknown, systems.values())) else code
        yield reason_of(code, value, KNOWN, who_answers=text)


def about_familiarity(evidence: Evidence) -> Iterator[Reason]:
    """How familiar the base is with the questions, from the probes that ran."""
    for row in evidence.measured.coverage:
        if row.name == "familiarity" and not row.adapters and row.value is not None:
            yield _about_share(row.value, row.n)
    asked = [row for row in evidence.measured.coverage if not row.adapters]
    swaps = [row for row in asked if row.name == "name_swap"]
    with_hops = {row.task for row in swaps if row.hop}
    for row in swaps:
        # The rows of the hops say more than the row of the composed question.
        if row.value is None or row.ci95 is None or (row.hop is None and row.task in with_hops):
            continue
        where = f"hop {row.hop} of {row.task}" if row.hop else row.task or "the probes"
        times, low, high = (_factor(math.exp(min(x, 20.0))) for x in (row.value, *row.ci95))
        yield reason_of(
            "familiar-names" if row.ci95[0] > 0 else "unfamiliar-names",
            row.value,
            0.0,
            times=f"On {where} the real names make the answer {times} [{low}, {high}] times as "
            "likely as made-up ones",
            tail="they do not help the base"
            if row.ci95[1] < 0
            else "it is not shown that the base knows them",
        )


def _about_share(share: float, n: int) -> Reason:
    """How many tokens of the adapters' answers the base would choose too."""
    if n < FEWEST_ANSWERS:
        answers = count(n, "answer")
        return reason_of("probes-too-few", float(n), float(FEWEST_ANSWERS), answers=answers)
    if share <= UNFAMILIAR:
        return reason_of("probes-unfamiliar", share, UNFAMILIAR, n=n)
    return reason_of(f"probes-{'familiar' if share >= FAMILIAR else 'mixed'}", share, FAMILIAR, n=n)


def _factor(value: float) -> str:
    """A factor with two digits, from 10 as a whole number."""
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


# ---- items and answers ---------------------------------------------------------------------------


def about_items(evidence: Evidence, verdict: Verdict) -> Iterator[Reason]:
    """What the number of items and the fields that they lack leave open."""
    scored = [row for row in evidence.measured.scores if row.part == QUESTION]
    if not scored:
        return
    parts = {row.part for row in evidence.measured.scores}
    yield from about_replies(evidence, _rows_decided_on(evidence, verdict))
    yield from _about_more_than_measured(evidence)
    for row in evidence.measured.coverage:
        if row.name == "chat_template" and row.value is not None and row.baseline is not None:
            gap = row.value - row.baseline
            if abs(gap) >= TEMPLATE_MATTERS:
                used = "with" if gap > 0 else "without"
                yield reason_of("template-matters", gap, TEMPLATE_MATTERS, row=row, used=used)
    rounds = evidence.measured.rounds
    early = rounds is not None and rounds.early and evidence.level == "evaluation"
    if rounds is not None and early and verdict.missing != "time":
        yield reason_of(
            "stopped-early",
            float(rounds.items),
            float(rounds.total),
            source=f"alpha spent over rounds; intervals of level {rounds.level:.4g} at this one",
            rounds=rounds,
            items=count(rounds.total, "item"),
        )
    largest = {row.task: row for row in sorted(scored, key=lambda row: row.n)}
    fewest = min((row.estimate for row in largest.values()), key=lambda score: score.clusters)
    if fewest.clusters < FEWEST_ITEMS:
        yield few_items(fewest.n, fewest.clusters, decisive=False)
    if evidence.repeated:
        yield reason_of("repeated-questions", float(evidence.repeated), float(evidence.items))
    if verdict.decision == "inconclusive" and verdict.gain is None:  # whose interval tells more
        yield from _about_ceiling(evidence)
    # Hops or worked answers may change what to do only where nothing that was measured answers.
    unanswered = ("train-target-adapter", "gather-evidence", "step-by-step")
    if verdict.composes or verdict.action.kind not in unanswered:
        return
    if evidence.several or evidence.losses:
        return
    if not evidence.systems(COMPOSITIONS) or any(judged_elsewhere(row.metric) for row in scored):
        return  # items that are asked elsewhere have no such fields
    from loraprobe.tasks import is_generated  # a merge has no scores

    if STEPS not in parts and any(is_generated(row.metric) for row in evidence.measured.scores):
        yield reason_of("steps-missing")
    if not any(part.hop for part in parts):
        yield reason_of("hops-missing")


def _about_ceiling(evidence: Evidence) -> Iterator[Reason]:
    """That no answers to so few items can show that nothing is left to gain.

    A score is at the ceiling if the lower end of its interval exceeds 1 - margin. If every item is
    right, Wilson's interval starts at n / (n + z^2).
    """
    if evidence.losses or evidence.several or not 0 < evidence.margin < 1:
        return
    ceiling = 1 - evidence.margin
    needed = math.floor(Z95**2 * ceiling / evidence.margin) + 1
    baselines = ranked(evidence.scored(evidence.systems(BASELINES)))
    near = [
        row
        for baseline in baselines
        if not evidence.at_ceiling(baseline.score, evidence.margin)
        for row in evidence.scores(baseline.system, baseline.part)
        if row.value > ceiling
    ]
    if near and near[0].estimate.clusters < needed:
        yield reason_of(
            "ceiling-out-of-reach",
            float(near[0].estimate.clusters),
            float(needed),
            who=baseline_in_words(near[0].system),
            row=near[0],
            margin=evidence.margin,
            units="clusters of questions" if near[0].clusters else "questions",
        )


def _rows_decided_on(evidence: Evidence, verdict: Verdict) -> list[Score]:
    """The scores on which a decision rests.

    These are the best composition's and those of what that has to beat; before an evaluation those
    of the base and the single adapters.
    """
    rows = evidence.measured.scores
    if verdict.gain is None:
        return [row for row in rows if row.kind in BASELINES and row.part != STEPS]
    names = (verdict.gain.system, verdict.gain.against)
    return [row for row in rows if row.system in names and row.part in FORMS]


def about_replies(evidence: Evidence, rows: Sequence[Score]) -> Iterator[Reason]:
    """That many of these generated answers were cut, or are right in other words."""
    rows = [row for row in rows if row.cut is not None]
    if worst := most_cut(rows):
        limit, wanted = limit_of_tokens(worst, evidence.measured.scores, evidence.max_new_tokens)
        where = FORM.get(worst.part) or f"to {worst.part.words}"
        yield reason_of(
            "answers-cut", worst.cut, CUT_MATTERS, row=worst, form=where, limit=limit, wanted=wanted
        )
    rows = [row for row in rows if _stands(row, evidence.measured)]
    row = max(rows, key=_otherwise, default=None)
    if row is not None and _otherwise(row) >= SAID_OTHERWISE:
        form, metric = FORM[row.part], row.metric.replace("_", " ")
        share = _otherwise(row)
        yield reason_of("said-otherwise", share, SAID_OTHERWISE, row=row, form=form, metric=metric)


def without_form(records: EvaluationRecords) -> Score | None:
    """The score of a system that names far more right answers than anything gives in their form.

    None where there is none. In worked texts by `numeric` any number counts as named.
    """
    asked = [row for row in records.scores if row.part in FORMS and row.kind != "control"]
    most = {row.task: 0.0 for row in asked}
    for row in asked:
        most[row.task] = max(most[row.task], row.value)
    rows = [
        row
        for row in asked
        if row.kind in (*BASELINES, *COMPOSITIONS)
        and not (row.part == STEPS and "numeric" in row.metric)
        and _stands(row, records)
        and (row.contains or 0.0) >= most[row.task] + SAID_OTHERWISE
    ]
    return min(rows, key=lambda r: (-(r.contains or 0.0), -r.value, r.system), default=None)


def _stands(row: Score, records: EvaluationRecords) -> bool:
    """Whether at least half of the replies name the right answer, and not by chance.

    By chance so many hold it as guessing gets right, or as those of the base hold it, and those
    that name other answers as well.
    """
    rows = [one for one in records.scores if (one.task, one.part) == (row.task, row.part)]
    chance = [one.contains for one in rows if one.kind == "base" != row.kind]
    of_task = [one for one in records.coverage if one.task == row.task]
    chance += [one.value for one in of_task if one.name == GUESSING]
    alone = f"{ALONE}_{row.part}", (row.system,)
    named = [one.value for one in of_task if (one.name, one.adapters) == alone] or [row.contains]
    least = [KNOWN, *((share or 0.0) + SAID_OTHERWISE for share in chance)]
    return row.part in FORMS and (named[0] or 0.0) >= max(least)


def named_in(sample: Sample, row: Score | None) -> str:
    """The reply of a score's system to a question that names the right answer without its form."""
    if row is None or (sample.task, sample.part) != (row.task, row.part):
        return ""
    said = [one for one in sample.replies if one.system == row.system and one.contains]
    return next((one.text for one in said if not one.right), "")


def _about_more_than_measured(evidence: Evidence) -> Iterator[Reason]:
    """What would be right more often than anything is: another form, or a choice of adapters."""
    named = without_form(evidence.measured)
    if named is not None:
        who = (
            baseline_in_words(named.system)
            if named.kind in BASELINES
            else display_name(named.system)
        )
        who += f", {FORM[named.part]}," if named.part == STEPS else ""
        yield reason_of(
            "right-without-form",
            named.contains,
            SAID_OTHERWISE,
            who=who,
            where=_of_task(evidence, named.task),
        )
    for pair in evidence.measured.coverage:
        scores = [row for row in evidence.measured.scores if row.task == pair.task]
        most = max((r.value for r in scores if r.part in FORMS and r.kind != "control"), default=1)
        share = (pair.value or 0.0) if pair.name == TOGETHER else 0.0
        if share >= 1 - evidence.margin and share - most > SAID_OTHERWISE:
            who, where = " or ".join(pair.adapters), _of_task(evidence, pair.task)
            yield reason_of("right-together", share, SAID_OTHERWISE, who=who, where=where)


def _of_task(evidence: Evidence, task: str) -> str:
    return f" of {task}" if evidence.several else ""


def most_cut(rows: Sequence[Score]) -> Score | None:
    """The score that lost most answers to the limit of tokens; None where this is no matter."""
    worst = max(rows, key=_lost, default=None)
    return worst if worst is not None and _lost(worst) > CUT_MATTERS else None


def limit_of_tokens(row: Score, scores: Sequence[Score], given: int | None) -> tuple[int, int]:
    """The limit of the answers of a score, and one to try.

    given: --max-new-tokens, which sets the limit of worked answers as well: what is tried must not
    make that smaller.
    """
    limit = given or (WORKED_TOKENS if row.part == STEPS else PLAIN_TOKENS)
    worked = not given and any(one.part == STEPS for one in scores)
    return limit, max(2 * limit, WORKED_TOKENS if worked else 0)


def _lost(row: Score) -> float:
    """At most this share of the answers was cut before a right one stood in them.

    Where enough replies ended by themselves, the cut ones are taken to be right as often as these.
    """
    cut, held = row.cut or 0.0, row.contains or 0.0
    lost = min(cut, 1 - held)
    return lost if cut > ALL_CUT else min(lost, cut * held / (1 - cut))


def _otherwise(row: Score) -> float:
    """The share of the answers that are right in other words only."""
    return 0.0 if row.contains is None or row.part not in FORMS else row.contains - row.value
