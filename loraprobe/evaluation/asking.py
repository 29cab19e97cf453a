"""Asks systems the questions of tasks, and keeps their answers; the one loop that does.

`run_systems` asks every system the parts of every item that it has not answered yet. The *chain*
asks each hop of the adapter, or of the base, that answers it best, and puts the answer into the
next hop's prompt. It needs no merging, so it is the alternative to every composition.

The `ResponseCache` holds the answers of a run, in memory and in a file that `--resume` reads.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from loraprobe.defaults import LOSS
from loraprobe.errors import OutputError, UsageError
from loraprobe.evaluation.questions import BASE, Question, System, questions
from loraprobe.records import (
    QUESTION,
    STEPS,
    ChainHop,
    ItemPart,
    ItemResult,
    Progress,
    called,
    hop_part,
    judged_elsewhere,
)
from loraprobe.results import CURE, NAME, JsonLines
from loraprobe.tasks import METRICS, Examiner, Task, fill

if TYPE_CHECKING:
    from loraprobe.scoring import Scorer

BATCH = 256  # questions between two appends to the response cache
MOST_LOSS = 1e4  # nats per token; `scoring` clamps log-probabilities at -1e4
TYPES = {  # of a result in a file
    **dict.fromkeys(("system", "task", "part", "item", "metric", "text", "group"), str),
    "value": float,
    "contains": bool,
    "cut": bool,
}

T = TypeVar("T")
Open = Sequence[tuple[System, Sequence[Question]]]  # what each system has not answered yet
Answers = Iterable[tuple[System, list[ItemResult]]]  # batches of answers, as they come


class ResponseCache(JsonLines[ItemResult]):
    """The results of this run and of the run that it resumes, by system, task, part and item.

    path: a .jsonl file, or a directory for `results.jsonl`, or None to use memory only. resume,
    fingerprint and errors are those of `JsonLines`.
    """

    def __init__(
        self,
        path: str | Path | None = None,
        resume: bool = False,
        *,
        fingerprint: Mapping[str, Any] | None = None,
    ) -> None:
        file = None if path is None else Path(path)
        if file is not None and file.suffix != ".jsonl":
            file = file / NAME
        super().__init__(file, resume, fingerprint or {}, item_result)
        self._results: dict[tuple[str, ...], ItemResult] = {row.key: row for row in self.rows}

    def append(self, rows: Iterable[ItemResult]) -> None:
        """Add a batch and write it to the disk before returning."""
        batch = list(rows)
        if batch:
            super().append(map(asdict, batch))
        self._results.update({result.key: result for result in batch})

    def add_missing(self, results: Iterable[ItemResult]) -> None:
        """`append` of those of which there is no result yet."""
        self.append([result for result in results if result.key not in self._results])

    def get(self, system: str, task: str, part: str, item: str) -> ItemResult | None:
        """One result, or None if there is none yet."""
        return self._results.get((system, task, part, item))

    def __iter__(self) -> Iterator[ItemResult]:
        return iter(self._results.values())

    def __len__(self) -> int:
        return len(self._results)


def item_result(row: Any) -> ItemResult:
    """A result from a JSON value. Raises ValueError for a row that no run writes.

    Its value must be 0 or 1, for a metric of an `Examiner` from 0 to 1, and for the metric
    "answer_loss" between 0 and MOST_LOSS nats.
    """
    if not isinstance(row, dict) or {key: type(value) for key, value in row.items()} != TYPES:
        raise ValueError("other keys or another type")
    json.dumps(row, ensure_ascii=False).encode()  # a lone surrogate is a ValueError
    metric, value = row["metric"], row["value"]
    elsewhere, loss = judged_elsewhere(metric), metric == LOSS
    if not (elsewhere or metric in METRICS):
        raise ValueError("an unknown metric")
    if not 0 <= value <= (MOST_LOSS if loss else 1) or not (elsewhere or loss or value in (0, 1)):
        raise ValueError("no value of this metric")
    return ItemResult(**row | {"part": ItemPart(row["part"])})


def run_systems(
    scorer: Scorer,
    systems: Sequence[System],
    tasks: Sequence[Task],
    responses: ResponseCache,
    *,
    max_new_tokens: int | None = None,
    progress: Progress | None = None,
    parts: Collection[str] | None = None,
    asking: Callable[[Open], Answers] | None = None,
) -> list[ItemResult]:
    """The result of every system on every part of every item, or on `parts`; chains come last.

    Results in the response cache are not computed again, and new results are added to it in
    batches. Hops are scored with gold answers of earlier hops. A chain is scored only on items with
    hops; the results of its hops are those of the base or the adapters that answer them. The order
    of the results is that of systems and questions, whatever the order in the response cache is.

    asking: answers in place of the scorer, in batches of any order (steps of a chain are always
    asked of the scorer). Raises UsageError if two systems or two tasks share a name, OutputError if
    a result of the response cache does not fit its question.
    """
    for named, what in ((systems, "systems"), (tasks, "tasks")):
        for name, times in Counter(one.name for one in named).items():
            if times > 1:
                raise UsageError(f"Two {what} are named {name!r}: give each its own name.")
    asker = Asker(scorer, responses, max_new_tokens, progress, asking)
    asked = [q for q in questions(tasks) if parts is None or q.part in parts]
    asker.ask([system for system in systems if system.kind != "chain"], asked)
    for system in systems:
        if system.kind == "chain":
            asker.ask_chain(system, tasks, asked)
    return [
        replace(_checked(result, question, responses), system=system.name)
        for system in systems
        for question in asked
        if (result := responses.get(system.key, *question.key))
    ]


def _checked(result: ItemResult, question: Question, responses: ResponseCache) -> ItemResult:
    """A result of the response cache. Raises OutputError if it does not fit its question."""
    if (result.metric, result.group) != (question.metric, question.item.cluster):
        raise OutputError(
            f"{responses.path} holds a result of item {result.item!r} that does not "
            f"fit task {result.task}: {CURE}"
        )
    return result


@dataclass(frozen=True)
class Asker:
    """Asks systems what they have not answered yet, and caches the answers as they come."""

    scorer: Scorer
    responses: ResponseCache
    max_new_tokens: int | None = None
    progress: Progress | None = None
    asking: Callable[[Open], Answers] | None = None

    def ask(self, systems: Sequence[System], asked: Sequence[Question]) -> None:
        """Asks systems that are no chains. Prompts of similar length are asked together."""
        to_ask, done = list[tuple[System, list[Question]]](), 0
        for system in systems:
            open_ = [q for q in asked if self.responses.get(system.key, *q.key) is None]
            open_.sort(key=lambda q: (q.part == STEPS, len(q.prompt), q.prompt))
            to_ask += [(system, open_)] if open_ else []
        places = {
            system.name: f"{called(system.name)}, system {at} of {len(to_ask)}"
            for at, (system, _) in enumerate(to_ask, 1)
        }
        total = sum(len(open_) for _, open_ in to_ask)
        for system, rows in (self.asking or self._here)(to_ask):
            self.responses.append(rows)
            done += len(rows)
            self._report(places[system.name], done, total)

    def _here(self, to_ask: Open) -> Answers:
        """The scorer's own answers, in order; each system is put into the model once."""
        for system, open_ in to_ask:
            yield system, []  # tells who is asked
            with self.scorer.with_composition(system.composition) as scorer:
                for batch in batches(open_):
                    yield system, ask(scorer, batch, system.key, self.max_new_tokens)

    def ask_chain(self, system: System, tasks: Sequence[Task], asked: Sequence[Question]) -> None:
        """Asks the base and each adapter the open hops, then runs the chain over the hops.

        With more items another member may be the best at a hop. Items whose hops were answered
        otherwise by an earlier plan are asked again.
        """
        kept = self.responses.get
        alone = [System(BASE, "base"), *(System(s.name, "adapter", s) for s in system.chain)]
        self.ask(alone, [question for question in asked if question.part.hop])
        for task in tasks:
            members = members_of_hops(system, task, self.responses)
            rows = [
                kept(name, task.name, hop_part(k), item)
                for item, names in members.items()
                for k, name in enumerate(names)
            ]
            planned = [replace(row, system=system.name) for row in rows if row is not None]
            changed = [row for row in planned if kept(*row.key) != row]
            again = {row.item for row in changed if kept(*row.key) is not None}
            self.responses.append(changed)
            own = [q for q in asked if (q.task, q.part) == (task.name, QUESTION) and q.item.hops]
            open_ = [q for q in own if q.item.id in again or not kept(system.name, *q.key)]
            for at, batch in enumerate(batches(open_)):
                self._report(system.name, at * BATCH, len(open_))
                self.responses.append(self._chained(system, batch, members))
            if own:
                self._report(system.name, len(open_), len(open_))

    def _chained(
        self, system: System, asked: Sequence[Question], members: Mapping[str, Sequence[str]]
    ) -> list[ItemResult]:
        """The chain's answers to composed questions of items that have hops.

        A step asks all items of one member together. The last hop's answer is judged as the answer
        of the item, by its choices if it has any. A question is not asked again if the response
        cache has the member's answer to the same prompt.
        """
        answers: dict[str, list[str]] = {question.item.id: [] for question in asked}
        results: list[ItemResult] = []
        for k in range(max(len(question.item.hops) for question in asked)):
            having = [question for question in asked if len(question.item.hops) > k]
            for name, composition in {BASE: None, **{s.name: s for s in system.chain}}.items():
                own = [question for question in having if members[question.item.id][k] == name]
                step = [_hop_question(question, k, answers[question.item.id]) for question in own]
                said = {}
                for question in step:
                    row = self.responses.get(name, question.task, hop_part(k), question.item.id)
                    same = question.prompt == question.item.hop_prompt(k)
                    if row is not None and same and row.metric == question.metric == "exact_match":
                        said[question] = question.judged(system.name, row.text, row.cut)
                if open_ := [question for question in step if question not in said]:
                    with self.scorer.with_composition(composition) as scorer:
                        new = ask(scorer, open_, system.name, self.max_new_tokens)
                    said.update(zip(open_, new, strict=True))
                for question in step:
                    answers[question.item.id].append(said[question].text)
                    results += [said[question]] if question.part == QUESTION else []
        return results

    def _report(self, name: str, done: int, total: int) -> None:
        if self.progress is not None:
            self.progress(f"evaluate {name}", done, total)


def batches(items: Sequence[T]) -> list[Sequence[T]]:
    """The items in parts of at most BATCH."""
    return [items[at : at + BATCH] for at in range(0, len(items), BATCH)]


def members_of_hops(system: System, task: Task, responses: ResponseCache) -> dict[str, list[str]]:
    """Item -> the member of a chain, an adapter or the base, that answers each of its hops.

    The response cache must contain the hops of the base and of every adapter. Hops at the same
    place for which the task names the same adapter, or none, go to the member with the best score
    on them: of equals the adapter that is named, then the base, then the first adapter.
    """
    groups: dict[tuple[int, str | None], list[str]] = {}
    for item in task.items:
        for k, hop in enumerate(item.hops):
            groups.setdefault((k, hop.adapter), []).append(item.id)

    def merit(name: str, k: int, items: Sequence[str]) -> float:
        rows = (responses.get(name, task.name, hop_part(k), item) for item in items)
        values = [row.merit for row in rows if row is not None]
        return sum(values) / len(values) if values else float("-inf")

    best = {}
    for (k, named), items in groups.items():
        merits = {name: merit(name, k, items) for name in (BASE, *(s.name for s in system.chain))}
        equals = [name for name, value in merits.items() if value == max(merits.values())]
        best[k, named] = named if named in equals else equals[0]
    return {
        item.id: [best[k, hop.adapter] for k, hop in enumerate(item.hops)]
        for item in task.items
        if item.hops
    }


def chain_hops(
    systems: Sequence[System], tasks: Sequence[Task], responses: ResponseCache, chat: bool
) -> tuple[ChainHop, ...]:
    """Who answers each hop of the chain of these systems, task by task, for the report.

    chat: whether prompts are turns of the chat template.
    """
    hops = []
    for system, task in ((s, t) for s in systems if s.kind == "chain" for t in tasks):
        groups: dict[tuple[str, ...], list[str]] = {}
        for item, members in members_of_hops(system, task, responses).items():
            groups.setdefault(tuple(members), []).append(item)
        prompts = {item.id: item.hops for item in task.items}
        for named, items in sorted(groups.items(), key=lambda group: -len(group[1])):
            for k, (member, hop) in enumerate(zip(named, prompts[items[0]], strict=True), 1):
                of = task.name, k, member, hop.prompt, items[0], len(items)
                hops.append(ChainHop(*of, chat))
    return tuple(hops)


def chain_notes(systems: Sequence[System], tasks: Sequence[Task]) -> list[str]:
    """Notes for a report on tasks that name adapters which are not present."""
    chains = [[single.name for single in s.chain] for s in systems if s.kind == "chain"]
    return [
        f"Task {task.name} names the adapter {missing!r} for a hop, which is none of "
        f"{', '.join(names)}; an adapter or the base with the best score on that hop answers it."
        for names in chains
        for task in tasks
        for missing in sorted(task.named_adapters - {*names})
    ]


def _hop_question(composed: Question, k: int, earlier: Sequence[str]) -> Question:
    """Hop k after the answers to earlier hops; the last hop asks for the item's answer."""
    hop = composed.item.hops[k]
    question = replace(composed, prompt=fill(hop.prompt, earlier))
    if k + 1 == len(composed.item.hops):
        return question
    return replace(question, part=hop_part(k), answers=hop.answers, metric="exact_match")


def ask(
    scorer: Scorer, batch: Sequence[Question], system: str, max_new_tokens: int | None = None
) -> list[ItemResult]:
    """The results of a batch, in its order, from a scorer whose model carries the system.

    max_new_tokens: of each reply; None for the number of its question.
    """
    found: dict[Question, ItemResult] = {}
    elsewhere: dict[type[Examiner], list[Question]] = {}
    for q in batch:
        if q.item.examiner is not None:
            elsewhere.setdefault(type(q.item.examiner), []).append(q)
    for kind, asked in elsewhere.items():
        answers = kind.ask(scorer, [q.item for q in asked])
        for q, (value, text) in zip(asked, answers, strict=True):
            found[q] = q.result(system, value, text)
    groups: dict[tuple[Any, ...], list[Question]] = {}
    for q in batch:
        if q.generated:
            groups.setdefault((q.worked, q.one_line, q.ended), []).append(q)
    for (_, one_line, until), asked in groups.items():
        most = asked[0].most_tokens if max_new_tokens is None else max_new_tokens
        prompts = [q.prompt for q in asked]
        replies = scorer.write_all(
            prompts, max_new_tokens=most, until_newline=one_line, until=until
        )
        for q, reply in zip(asked, replies, strict=True):
            found[q] = q.judged(system, reply.text, reply.cut)
    asked = [q for q in batch if not q.generated and q not in found]
    if asked:
        likely = scorer.loglikelihood([(q.prompt, text) for q in asked for text in q.continuations])
        scores = iter([(one.logprob, one.tokens) for one in likely])
        for q in asked:
            found[q] = q.scored(system, [next(scores) for _ in q.continuations])
    return [found[q] for q in batch]
