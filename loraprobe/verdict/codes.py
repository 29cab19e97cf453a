"""The stable codes of reasons, those first that change most what a person does."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Code:
    """A code: what it means, and where the answer of twelve lines tells it, if anywhere.

    line: "why" explains a decision that is not `likely`, "watch" is counted as a warning, "lacks"
    says what the items do not have. sure: it tells how sure the verdict is.
    """

    name: str
    meaning: str
    line: Literal["why", "watch", "lacks", ""] = ""
    sure: bool = False


_CODES = (
    Code("retention-lost", "a task of which less is kept than --retention asks", "why"),
    Code("retention-undecided", "a task of which it is open whether enough is kept", "why"),
    Code("retention-undefined", "a task on which no adapter differs from the base", "why"),
    Code("compression-lost", "a composition lost over a tenth of its delta to its rank", "why"),
    Code("answers-normalised", "exact match drops what tells the gold answers apart", "watch"),
    Code("few-items", "so few items that only a large difference decides", "watch", sure=True),
    Code("answers-cut", "many answers ended at the limit of tokens", "watch"),
    Code("said-otherwise", "many wrong answers hold the right one in other words", "watch"),
    Code("ceiling-out-of-reach", "so few items that none shows a ceiling", "watch", sure=True),
    Code("template-matters", "the chat template changes many answers of the adapters", "watch"),
    Code("adapters-complement", "each adapter answers questions that the others do not", "why"),
    Code("chain-gains", "each hop by whoever answers it best gains"),
    Code("single-suffices", "the best single adapter is the better choice"),
    Code("best-measured", "what to use although it gains less than was asked", "why"),
    Code("not-told-apart", "options whose scores do not show which is better"),
    Code("base-suffices", "the base alone is at the ceiling"),
    Code("base-is-better", "every composition is shown to be worse than the base alone"),
    Code("mostly-step-by-step", "most wrong answers are right step by step", "why"),
    Code("mostly-said-otherwise", "most wrong answers hold the right one in other words", "why"),
    Code("mostly-cut-off", "most wrong answers ended at the limit of tokens", "why"),
    Code("mostly-unknown", "most wrong answers need a hop that nobody knows", "why"),
    Code("mostly-interference", "most wrong answers lose a hop that is known alone", "why"),
    Code("mostly-not-composed", "most wrong answers keep every hop", "why"),
    Code("partner-adds-nothing", "a control is not shown to be beaten by the margin", "why"),
    Code("disjoint-hops", "one-hop adapters over names unfamiliar to the base", "why"),
    Code("hop-unknown-to-all", "no adapter knows a hop, and the base does not", "why"),
    Code("nothing-to-gain", "base or a single adapter is at the ceiling", "why"),
    Code("no-comparison", "compositions were scored without base and adapters", "why"),
    Code("same-adapter", "one adapter was given twice", "watch"),
    Code("nearly-equal-updates", "two adapters are nearly the same", "watch"),
    Code("norm-disparity", "one adapter is much larger than another", "watch"),
    Code("opposed-updates", "two adapters point against each other", "watch"),
    Code("large-update", "an update is large against the weights it changes", "watch"),
    Code("probes-too-few", "too few answers of the adapters could be judged", "watch"),
    Code("controls-not-run", "no control was scored", "watch"),
    Code("shared-initialisation", "two adapters started from one seed", "watch"),
    Code("steps-missing", "the items have no `cot_prompt`: what that leaves open", "lacks"),
    Code("hops-missing", "the items have no `hops`: what that leaves open", "lacks"),
    Code("step-by-step-form", "the gain step by step, if the plain question decides", "why"),
    Code("plain-form", "the gain on the plain question, if the steps decide", "why"),
    Code("probes-familiar", "the base would give most of the adapters' answers itself", "why"),
    Code("probes-mixed", "the base would give some of the adapters' answers itself", "why"),
    Code("probes-unfamiliar", "the base would give few of the adapters' answers itself", "why"),
    Code("stopped-early", "the decision held before all items were asked"),
    Code("unrelated-updates", "no pair is opposed or nearly equal"),
    # What follows stands in the order of the rules.
    Code("structural-conflict", "adapters, or adapters and base, cannot be composed as they are"),
    Code("weights-do-not-decide", "only weights were examined"),
    Code("probes-do-not-decide", "only probes were asked"),
    Code("base-does-not-decide", "coverage and single adapters do not decide"),
    Code("next-evidence", "the cheapest further evidence"),
    Code("chosen-from-library", "out of how many adapters and sets of them this was chosen"),
    Code("measured-elsewhere", "what measured compositions of others gained"),
    Code("chain-expected", "the accuracy of a chain that the hop accuracies predict"),
    Code("gain-beyond-margin", "the best composition's lower bound exceeds the margin"),
    Code("gain-below-margin", "every composition's upper bound lies below the margin"),
    Code("gain-undecided", "the interval holds the margin"),
    Code("gain-with-reservation", "a gain that controls or retention do not confirm"),
    Code("controls-beaten", "every control is beaten"),
    Code("retention-kept", "a task of which as much is kept as --retention asks"),
    Code("chain-fails", "each hop by whoever answers it best does not gain"),
    Code("chain-undecided", "it is open whether each hop by whoever answers it best gains"),
    Code("switch-adapters", "no composition keeps all skills, each adapter keeps its own"),
    Code("first-round", "the compositions answered only a few items", sure=True),
    Code("forecast", "the gain if the effects on the next token simply added", sure=True),
    Code("forecast-retention", "what would be kept of a task if the effects simply added"),
    Code("probability-measured-on", "the probability, its prior, and its errors", sure=True),
    Code("outside-calibration", "why there is no probability here", sure=True),
    Code("hop-known", "the system that answers a hop best knows it"),
    Code("hop-in-doubt", "it is open whether any system knows a hop"),
    Code("hop-unknown", "no system knows a hop"),
    Code("familiar-names", "the base tells the names from made-up ones"),
    Code("unfamiliar-names", "the base is not shown to tell the names from made-up ones"),
    Code("factor-averaging-differs", "averaging the factors misses the average of the updates"),
)
CODES = {code.name: code for code in _CODES}
RULES_FOLLOW = list(CODES).index("structural-conflict")  # from here on one code is as good


def effect(code: str) -> int:
    """The place of a code: a smaller one changes more of what a person does."""
    return min(list(CODES).index(code), RULES_FOLLOW)
