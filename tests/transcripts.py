"""Transcripts of reports: what answers and terminals show of planted audits, and what the files
`extensions/NAME/shown.py` have under TEXTS.

    python tests/transcripts.py

writes them anew into tests/core/report/transcripts, and those of extensions beside these files.
tests/core/report/test_docs.py compares them.
"""

import importlib
import sys
from collections.abc import Callable
from pathlib import Path

from audits import NOTHING, an_audit, rendered
from evidences import (
    KINDS,
    Chances,
    N,
    both,
    case,
    changed,
    evidence,
    evidence_of,
    guards,
    known,
    replaced,
    score,
    skills,
)
from evidences import measured as planted

from loraprobe.formatting import wrapped
from loraprobe.records import (
    QUESTION,
    AdapterSummary,
    Attribution,
    Audit,
    BaseSummary,
    Compatibility,
    Coverage,
    Gain,
    Issue,
    LearnedWeights,
    Measurement,
    Provenance,
    Reply,
    Rounds,
    Sample,
    Score,
    TaskSummary,
)
from loraprobe.report.answer import answer
from loraprobe.verdict import Evidence, Request, decide, next_command
from loraprobe.verdict.next_command import CompositionSpec, Conflict

FOLDER = Path(__file__).parent / "core" / "report" / "transcripts"
NEAR = Measurement("cosine", ("a", "b"), 0.998)
UNEVEN = Measurement("norm_ratio", ("a", "b"), 24.6)


def audit_of(found: Evidence, command: str = "merge-and-eval", **request) -> Audit:
    """The audit of two adapters with the verdict on this evidence."""
    verdict = decide(found, [Chances()])
    kind = KINDS.get(verdict.system or "", "merge")
    given = {"adapters": ("./a", "owner/b"), "tasks": ("t.jsonl",), **request}
    asked = Request(composition=CompositionSpec(kind), **given)
    rows = [
        AdapterSummary(name, name, None, "gpt2", {"min": 8, "max": 8}, 36, 100, 1.0)
        for name in ("a", "b")
    ]
    return Audit(
        command,
        Provenance("0", "2", ()),
        adapters=tuple(rows),
        compatibility=found.compatibility,
        diagnostics=found.diagnostics,
        evaluation=found.measured,
        verdict=replaced(verdict, next=next_command(verdict, asked)),
    )


LOW = {"base": 0.0, "a": 0.05, "uniform": 0.05, "random-partner": 0.05}
WORKS = {"base": 0.0, "a": 0.1, "uniform": 0.6, "random-partner": 0.1}
NEEDED = evidence({**WORKS, "uniform": 0.16}, half=0.1)
FEW = changed(changed(evidence({**WORKS, "uniform": 0.3}, half=0.3), n=8), rows="gains", n=8)
EARLY = replaced(
    evidence({**dict.fromkeys(KINDS, 0.05), "arrow": 0.8}), rounds=Rounds(2, 3, N, 150, 0.99)
)
CAUSES = (Attribution("uniform", "t", not_composed=95),)
NO_GAIN = replaced(
    known(evidence(dict.fromkeys(KINDS, 0.05), attribution=CAUSES)), rounds=EARLY.measured.rounds
)
TASKS = skills(
    {"base": (0.05, 0.05), "a": (1.0, 0.08), "b": (0.05, 0.9), "arrow": (0.8, 0.8)}, 0.05
)
NORMS = (Measurement("norm", ("a",), 54.0), Measurement("norm", ("b",), 2.0))
SAME = Measurement("cosine", ("a", "b"), 1.0)
SEED = Measurement("shared_initialisation", ("a", "b"), 1.0)
TWICE = Issue("warning", "duplicate", ("a", "b"), "a and b are the same update.", "Drop one.")


def template(without):
    """Adapters that answer 0.9 with the chat template, and so much without."""
    return evidence(WORKS, coverage=(Coverage("chat_template", "t", 0.9, 32, baseline=without),))


def weights(*rows, issues=()):
    return evidence_of(diagnostics=rows, compatibility=Compatibility(issues))


HOPELESS = planted(-0.02, 0.09, level="evaluation")
ROUND_SCORES = (*case().measured.scores, replaced(score("sum", 0.5), n=30))
ROUND_GAIN = Gain("t", QUESTION, "sum", "a", 0.2, (-0.1, 0.5), (-0.1, 0.5), 30, 200)
ROUND = case(scores=ROUND_SCORES, gains=(ROUND_GAIN,), level="pilot")
CONFLICT = Issue("error", "base-mismatch", ("a", "b"), "a is of gpt2, b of llama.", "Take one.")
UNFIT = evidence_of(compatibility=Compatibility((Issue("error", "x-y", ("c",), "No.", "Mend."),)))
# Evidence of which the answer is shown.
CASES = {
    "the best so far is a composition, whose gain is decided": evidence(
        {"base": 0.03, "a": 0.07, "b": 0.03, "sum": 0.67, "uniform": 0.11}
    ),
    "what hops would tell comes before what explains": changed(
        evidence(LOW), cut=0.5, contains=0.05
    ),
    "only a shrunk adapter answers": evidence(
        {**dict.fromkeys(("base", "a", "b", "sum"), 0.0), "shrunk:a": 0.5}
    ),
    "the best of both forms does not come near a chain": known(
        both(
            evidence({**LOW, "sum": 0.05, "chain": 0.95}, half=0.08),
            evidence({**dict.fromkeys(LOW, 0.3), "a": 0.34, "sum": 0.32}, part="steps", half=0.08),
        )
    ),
    "a bound is told from the margin": evidence(
        {"base": 0.0, "a": 0.5, "b": 0.1, "sum": 0.6}, half=0.052
    ),
    "a bound is told from the retention": changed(
        TASKS, lambda r: r.system == "arrow", retention=0.85, retention_ci95=(0.798, 0.9)
    ),
    "the best so far is an adapter": evidence({"base": 0.03, "a": 0.27, "b": 0.03, "sum": 0.3}),
    "until several tasks are decided": changed(
        TASKS, lambda r: r.system == "arrow", retention=0.8, retention_ci95=(0.7, 0.9)
    ),
    "stopped early": EARLY,
    "stopped early without a gain": NO_GAIN,
    "a guard is lost, and the gain is open": replaced(
        evidence({**WORKS, "uniform": 0.16}, half=0.1, guards=guards(uniform=-0.3)),
        guard_names=("g",),
    ),
    "a guard is lost by what gains": evidence(
        WORKS, guards=guards(uniform=-0.3), guard_names=("g",)
    ),
    "a chain that loses a guard is not better": evidence(
        {**WORKS, "sum": 0.8, "chain": 1.0},
        guard_names=("g",),
        part="question",
        guards=guards(uniform=0.0, sum=-0.3, chain=-0.3),
    ),
    "all that answers loses a guard": evidence(
        {**LOW, "sum": 0.06, "chain": 0.9},
        half=0.1,
        guard_names=("g",),
        guards=guards(sum=0.0, uniform=0.0, chain=-0.3),
    ),
    "nothing was composed, and a chain answers few questions": changed(
        changed(evidence({"base": 0.0, "a": 0.05, "b": 0.04, "chain": 0.9}), n=12),
        rows="gains",
        n=12,
    ),
    "nothing was composed, and nothing is shown to answer": known(
        evidence({"base": 0.0, "a": 0.03, "b": 0.04})
    ),
    "a chain is advised that may lose a guard": evidence(
        {**LOW, "uniform": 0.04, "chain": 0.9},
        half=0.02,
        guard_names=("g",),
        guards=guards(half=0.3, uniform=0.0, chain=-0.2),
    ),
    "what scores more and is no option yet is close": evidence({**WORKS, "arrow": 0.66}, half=0.08),
    "after every round": replaced(EARLY, rounds=Rounds(3, 3, N, N, 0.96)),
    "a chain is better still": evidence({**WORKS, "chain": 1.0}),
    "a chain is worse": evidence({**WORKS, "chain": 0.5}),
    "a single adapter is better": evidence(
        {"base": 0.0, "a": 0.9, "b": 0.1, "uniform": 0.4, "random-partner": 0.5}
    ),
    "less than was asked": evidence(
        {"base": 0.0, "a": 0.02, "sum": 0.8, "random-partner": 0.02}, part="steps", margin=0.9
    ),
    "few questions": changed(FEW, rows="gains", n_needed=320),
    "copies of a question": replaced(FEW, items=40, repeated=32),
    "more questions than anybody has": changed(NEEDED, rows="gains", n_needed=None),
    "more clusters": changed(NEEDED, rows="gains", n_needed=340, clusters=20),
    "no hope of a gain": HOPELESS,
    "no hope of a gain in a first round": replaced(HOPELESS, level="pilot"),
    "a first round": ROUND,
    "the chat template matters": template(0.1),
    "or not": template(0.85),
    "weights": weights(NEAR, UNEVEN),
    "the adapter that hardly shows": weights(replaced(UNEVEN, value=27.0), *NORMS),
    "equal updates once": weights(SEED, SAME, issues=(TWICE,)),
    "another pair is another fact": weights(
        replaced(SEED, adapters=("a", "c")), SAME, issues=(TWICE,)
    ),
}


def asked_of(found: Evidence) -> Audit:
    """The audit of the command that gives such evidence."""
    return audit_of(found, "merge-and-eval" if found.measured.scores else "inspect")


def first_round_of(items: int) -> Audit:
    """A first round where a file has so many questions; its gain takes 200 to be decided."""
    audit = audit_of(ROUND)
    tasks = (TaskSummary("t", "t.jsonl", None, "", items),)
    return replaced(audit, provenance=replaced(audit.provenance, tasks=tasks))


def in_another_form() -> Audit:
    """b names every right answer, and never in the form of the gold answers."""
    values = {"base": 0.0, "a": 0.1, "b": 0.0, "sum": 0.3}
    asked = changed(known(evidence(values)), contains=0.0, cut=0.0)
    asked = changed(asked, lambda row: row.system == "b", contains=1.0)
    replies = (Reply("a", "no", False), Reply("b", "Russia", False, contains=True))
    sample = Sample("t", QUESTION, "1", "Where?", ('{"a": "Russia"}',), replies)
    return replaced(audit_of(asked), samples=(sample,))


LEARNED = LearnedWeights({"a": 1.5, "b": 0.2}, 0.66, 0.6, 0.9, 40, 12, 12, 36)
TWO = ("a", "b", "c")
AUDITS = {
    **{name: asked_of(found) for name, found in CASES.items()},
    "what was learned": replaced(
        audit_of(weights(SEED), "merge"), notes=("Merged.",), search=LEARNED
    ),
    **{f"a first round of {items} items at hand": first_round_of(items) for items in (199, 200, 0)},
    "the right answer in another form": in_another_form(),
    "two of three fit together": audit_of(UNFIT, adapters=TWO, conflict=Conflict(fitting=TWO[:2])),
}


LEAST = dict.fromkeys(KINDS, 0.05)
SCENARIOS = {
    "likely": both(
        evidence({**LEAST, "chain": 1.0}), evidence({**LEAST, "arrow": 0.8}, part="steps")
    ),
    "chain": evidence({**LEAST, "chain": 1.0}, attribution=CAUSES),
    "use-single": evidence({**LEAST, "a": 1.0, "arrow": 0.7, "random-partner": 0.9}),
    "inconclusive": evidence({**LEAST, "uniform": 0.3, "chain": 0.1}, half=0.3),
    "incompatible": evidence(LEAST, compatibility=Compatibility((CONFLICT,))),
}
GUARDED = {"base": 0.0, "a": 0.1, "uniform": 0.6}
ROWS = tuple(
    Score(system, "merge", task, QUESTION, "exact_match", 0.5, (0.4, 0.6), n)
    for system, n in (("uniform", 30), ("sum", 120))
    for task in ("t", "u")
)
SHOWN = {
    **{name: audit_of(found) for name, found in SCENARIOS.items()},
    "a guard of which one was not asked": audit_of(
        evidence(GUARDED, guard_names=("g",), guards=guards(uniform=0.0))
    ),
    "a guard of which the worse was not asked": audit_of(
        evidence(GUARDED, guard_names=("g",), guards=guards(a=0.0, uniform=0.0))
    ),
    "systems that were asked different numbers of questions": replaced(an_audit(), scores=ROWS),
    "one of everything": an_audit(),
    "an inspected adapter": replaced(
        an_audit(),
        command="inspect",
        adapters=an_audit().adapters[:1],
        base=BaseSummary("gpt2"),  # a directory, so that the Hub has no others of it
        verdict=None,
        **NOTHING,
    ),
}


def answers() -> str:
    """The answer to each of AUDITS on 80 columns."""
    told = {name: answer(audit) for name, audit in AUDITS.items()}
    rows = {name: [*wrapped(one.headline, 80), *one.rows(80)] for name, one in told.items()}
    return titled({name: "\n".join(own) for name, own in rows.items()})


def terminals() -> str:
    """What a terminal of 80 columns shows of SHOWN, and with --explain."""
    told = {name: rendered(audit, 80, explain=False) for name, audit in SHOWN.items()}
    return titled(told | {"one of everything, explained": rendered(an_audit(), 80)})


def titled(texts: dict[str, str]) -> str:
    """The texts below their names, without what ends a line unseen."""
    parts = (f"=== {name}\n{text.rstrip()}\n" for name, text in texts.items())
    return "\n".join("\n".join(map(str.rstrip, part.split("\n"))) for part in parts)


def texts() -> dict[Path, Callable[[], str]]:
    """The file of each transcript -> what makes it."""
    found = {FOLDER / "answers.txt": answers, FOLDER / "terminal.txt": terminals}
    for file in Path(__file__).parent.glob("extensions/*/shown.py"):
        added = importlib.import_module(f"extensions.{file.parent.name}.shown").TEXTS
        found |= {file.parent / "transcripts" / name: text for name, text in added.items()}
    return found


if __name__ == "__main__":
    sys.modules["transcripts"] = sys.modules["__main__"]  # for those of extensions
    for path, text in texts().items():
        path.write_text(text(), encoding="utf-8")
