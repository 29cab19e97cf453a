"""The paper's qualitative claims (arXiv 2506.13479), each with the rule that decides it here.

"Succeeds" and "fails" are said of the gain of the best of uniform, sum and arrow over the best of
base and single adapters, which may answer in their better form: the interval covers the choice of
the best among compositions and baselines.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from loraprobe.evaluation import gain
from loraprobe.records import Gain
from loraprobe_lab.reproduce.cells import Matrix, share
from loraprobe_lab.reproduce.findings import Finding, Test
from loraprobe_lab.reproduce.measure import METHODS, system_name

FAILS = "fails: the upper end of the gain's interval lies below the margin"
SUCCEEDS = "succeeds: the lower end of the gain's interval lies above the margin"
RAISES = "the lower end of the difference's interval lies above the margin"


@dataclass(frozen=True)
class Paper:
    """What the claims of one experiment are about.

    shared: template -> what it is called in a claim. familiar: the name set that the base knows
    best and the one that it knows least, where the experiment has such.
    """

    title: str
    shared: Mapping[str, str]
    names: Mapping[str, str]
    plain: str = "plain"
    familiar: tuple[str, str] | None = None
    disjoint: tuple[str, ...] = ()


TWO_HOP = Paper(
    title="Two hops: A -> B, B -> C, asked A -> C",
    shared={
        "cot": "worked answers in both adapters, on disjoint bridge entities",
        "shared": "a worked form of which each adapter writes its own step",
    },
    names={
        "fake": "fake: names never seen in facts",
        "half": "half: new people, second hop known to the base",
        "real": "real: both hops known to the base, the composed question not",
    },
    familiar=("real", "fake"),
    disjoint=("fake",),
)
MATH = Paper(
    title="Word problems: two types, asked for both in one problem",
    shared={
        "cot": "worked answers in both adapters",
        "shared": "one solution template (a small program) in both adapters",
    },
    names={},
)


def claims(matrix: Matrix, paper: Paper) -> list[Finding]:
    """Every claim of the paper for every set of questions that it is about."""
    found: list[Finding] = []
    for group in matrix.groups:
        found.append(_plain_fails(matrix, paper, group))
        found.append(_target_rescues(matrix, paper, group))
        found += [_shared_succeeds(matrix, paper, group, t) for t in paper.shared]
    found += [_both_fail(matrix, paper, group) for group in paper.disjoint]
    if paper.familiar is not None:
        found += [_familiarity(matrix, paper, template) for template in matrix.templates]
    return found


def _plain_fails(matrix: Matrix, paper: Paper, group: str) -> Finding:
    scenario = matrix.scenario(paper.plain, 2)
    return Finding(
        "plain-fails",
        "The 2-combination fails at the composed question asked at once, at every size",
        group,
        f"{FAILS}, at every size",
        _each_size(
            matrix, lambda size: matrix.best_gain(size, group, scenario), "below", matrix.margin
        ),
    )


def _target_rescues(matrix: Matrix, paper: Paper, group: str) -> Finding:
    two, three = matrix.scenario(paper.plain, 2), matrix.scenario(paper.plain, 3)

    def difference(size: str) -> Gain | None:
        return gain(
            matrix.results(size, group, two, three),
            [system_name(three, method) for method in METHODS],
            [system_name(two, method) for method in METHODS],
            str(two.axes["form"]),
            margin=matrix.margin,
        )

    tests = _each_size(matrix, difference, "above", matrix.margin)
    alone = [matrix.best_gain(size, group, three) for size in matrix.sizes]
    beyond = sum(g is not None and g.adjusted_ci95[0] > matrix.margin for g in alone)
    return Finding(
        "target-rescues",
        "A library that holds the target adapter answers it",
        group,
        f"best 3-combination minus best 2-combination: {RAISES}, at every size",
        tests,
        {"beyond": f"beats the target adapter alone at {beyond} of {len(alone)} sizes"},
    )


def _shared_succeeds(matrix: Matrix, paper: Paper, group: str, template: str) -> Finding:
    scenario = matrix.scenario(template, 2)
    raised = [_raise(matrix, paper, size, group, template) for size in matrix.sizes]
    up = sum(g is not None and g.adjusted_ci95[0] > matrix.margin for g in raised)
    return Finding(
        f"{template}-succeeds",
        f"Reuse succeeds with {paper.shared[template]}",
        group,
        f"{SUCCEEDS}, at every size",
        _each_size(
            matrix, lambda size: matrix.best_gain(size, group, scenario), "above", matrix.margin
        ),
        {"raised": f"more than the plain 2-combination at {up} of {len(raised)} sizes"},
    )


def _raise(matrix: Matrix, paper: Paper, size: str, group: str, template: str) -> Gain | None:
    """The best composition with this template minus the best plain one, each in its own form."""
    with_it, plain = matrix.scenario(template, 2), matrix.scenario(paper.plain, 2)
    return gain(
        matrix.results(size, group, with_it, plain),
        [system_name(with_it, method) for method in METHODS],
        [system_name(plain, method) for method in METHODS],
        str(with_it.axes["form"]),
        margin=matrix.margin,
    )


def _both_fail(matrix: Matrix, paper: Paper, group: str) -> Finding:
    """Uniform and arrow, each for itself, asked at once and step by step."""
    scenario = matrix.scenario(paper.plain, 2)
    tests = []
    for method in ("uniform", "arrow"):
        for form in ("target", "cot"):
            for size in matrix.sizes:
                found = gain(
                    matrix.results(size, group, scenario),
                    [system_name(scenario, method)],
                    ["base", *scenario.adapters],
                    form,
                    margin=matrix.margin,
                )
                if found is not None:
                    asked = "at once" if form == "target" else "step by step"
                    where = f"{size}, {method}, {asked}"
                    tests.append(_test(found, where, "below", matrix.margin))
    return Finding(
        "both-fail",
        "Uniform and arrow both fail where the facts are disjoint",
        group,
        f"{FAILS}, for each of them, in both forms, at every size",
        tuple(tests),
    )


def _familiarity(matrix: Matrix, paper: Paper, template: str) -> Finding:
    """Unpaired difference of two name sets, Newcombe's interval from two of Wilson's."""
    assert paper.familiar is not None
    most, least = paper.familiar
    scenario = matrix.scenario(template, 2)
    names, form = [system_name(scenario, m) for m in METHODS], str(scenario.axes["form"])
    tests = []
    for size in matrix.sizes:
        one, other = (share(matrix.results(size, g, scenario), names, form) for g in (most, least))
        value, low, high = newcombe(one[0], one[1], other[0], other[1])
        tests.append(Test(size, value, low, high, one[2] + other[2], "above", matrix.margin))
    return Finding(
        "familiarity-helps",
        f"Familiarity helps the 2-combination (template {template})",
        f"{most} - {least}",
        "score averaged over uniform, sum and arrow, most familiar minus least familiar name set: "
        f"{RAISES}, at every size",
        tuple(tests),
    )


def newcombe(
    p1: float, ci1: tuple[float, float], p2: float, ci2: tuple[float, float]
) -> tuple[float, float, float]:
    """p1 - p2 of independent samples with Newcombe's hybrid score interval (1998, method 10)."""
    low = p1 - p2 - math.hypot(p1 - ci1[0], ci2[1] - p2)
    high = p1 - p2 + math.hypot(ci1[1] - p1, p2 - ci2[0])
    return p1 - p2, low, high


def _each_size(
    matrix: Matrix,
    measure: Callable[[str], Gain | None],
    side: Literal["above", "below"],
    margin: float,
) -> tuple[Test, ...]:
    found = ((size, measure(size)) for size in matrix.sizes)
    return tuple(_test(g, size, side, margin) for size, g in found if g is not None)


def _test(found: Gain, where: str, side: Literal["above", "below"], margin: float) -> Test:
    against = found.against.rpartition(":")[2] if ":" in found.against else found.against
    return Test(
        where,
        found.difference,
        *found.adjusted_ci95,
        found.n,
        side,
        margin,
        f"{found.system.rpartition(':')[2]} against {against}",
    )
