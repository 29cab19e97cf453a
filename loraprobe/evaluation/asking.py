"""Asks systems the questions of tasks, and keeps their answers; the one loop that does.

`Asker.run` asks every system the parts of every item that it has not answered yet. The *chain* asks
each hop of the adapter, or of the base, that answers it best, and puts the answer into the next
hop's prompt. It needs no merging, so it is the alternative to every composition.

The `ResponseCache` keeps answers by request: what the system computes, what the item asks, and in
which form. An answer is the same whatever the names of systems, tasks and items are, and whatever
else a run asks.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from loraprobe.defaults import LOSS
from loraprobe.errors import LoraprobeError, UsageError
from loraprobe.evaluation.questions import BASE, DIGITS, Question, System, questions
from loraprobe.records import (
    QUESTION,
    STEPS,
    ChainHop,
    ItemPart,
    ItemResult,
    Progress,
    display_name,
    hop_part,
    judged_elsewhere,
)
from loraprobe.results import JsonLines, read_rows
from loraprobe.tasks import METRICS, Examiner, Task, fill

if TYPE_CHECKING:
    from loraprobe.scoring import Scorer

NAMED = "named:"  # of a request that only the same run may use again
BATCH = 256  # questions between two appends to the response cache
MOST_LOSS = 1e4  # nats per token; `scoring` clamps log-probabilities at -1e4
TYPES = {  # of a result in a file
    **dict.fromkeys(("system", "task", "part", "item", "metric", "text", "group", "request"), str),
    "value": float,
    "contains": bool,
    "cut": bool,
}

T = TypeVar("T")
Open = Sequence[tuple[System, Sequence[Question]]]  # what each system has not answered yet
Answers = Iterable[tuple[System, list[ItemResult]]]  # batches of answers, as they come


class ResponseCache(JsonLines[ItemResult]):
    """The answers of this run and of earlier ones, by request.

    path, resume, fingerprint and errors are those of `JsonLines`. others: files of runs with the
    same base; they are read where they are sound, but for answers of systems that go by their
    names. files: that of this run and those. results: all answers by request. reused: the requests
    of those of earlier runs that this one has used so far.
    """

    def __init__(
        self,
        path: Path | None = None,
        resume: bool = False,
        fingerprint: Mapping[str, Any] | None = None,
        others: Sequence[Path] = (),
    ) -> None:
        super().__init__(path, resume, fingerprint or {}, item_result)
        rows = list[ItemResult]()
        for other in others:
            with contextlib.suppress(LoraprobeError):
                _, own, _ = read_rows(other, item_result)
                rows += [row for row in own if not row.request.startswith(NAMED)]
        self.files = [*([path] if path else []), *others]
        self.results = {row.request: row for row in (*rows, *self.rows)}
        self._earlier, self.reused = frozenset(self.results), set[str]()

    def append(self, rows: Iterable[ItemResult]) -> None:
        """Add what is new of a batch and write it to the disk before returning."""
        batch = [row for row in rows if row.request not in self.results]
        if batch:
            super().append(map(asdict, batch))
        self.results.update({row.request: row for row in batch})

    def get(self, request: str) -> ItemResult | None:
        """The answer to a request, or None if there is none yet."""
        self.reused |= {request} & self._earlier
        return self.results.get(request)


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


@dataclass(frozen=True)
class Asker:
    """Asks systems what they have not answered yet, and keeps the answers as they come.

    max_new_tokens: of each reply; None for the number of its question. asking: answers in place of
    the scorer, in batches of any order (steps of a chain are always asked of the scorer).
    """

    scorer: Scorer
    responses: ResponseCache = field(default_factory=ResponseCache)
    max_new_tokens: int | None = None
    progress: Progress | None = None
    asking: Callable[[Open], Answers] | None = None

    def run(
        self,
        systems: Sequence[System],
        tasks: Sequence[Task],
        parts: Collection[str] | None = None,
    ) -> list[ItemResult]:
        """The result of every system on every part of every item, or on `parts`.

        What is kept is not asked again. Hops are scored with gold answers of earlier hops. A chain
        is scored only on items with hops; the results of its hops are those of the base or the
        adapters that answer them. The results are in the order of systems and questions. Raises
        UsageError if two systems or two tasks share a name.
        """
        for named, what in ((systems, "systems"), (tasks, "tasks")):
            for name, times in Counter(one.name for one in named).items():
                if times > 1:
                    raise UsageError(f"Two {what} are named {name!r}:", "give each its own name.")
        asked = [q for q in questions(tasks) if parts is None or q.part in parts]
        self.ask([system for system in systems if system.kind != "chain"], asked)
        rows = list[ItemResult | None]()
        for system in systems:
            if system.kind == "chain":
                rows += self.ask_chain(system, tasks, asked)
            else:
                rows += [self.get(system, question) for question in asked]
        return [row for row in rows if row is not None]

    def get(self, system: System, question: Question) -> ItemResult | None:
        """The answer of a system, under the names that it and the question have here.

        None if there is none yet.
        """
        request = request_of(self.scorer, system, question, self.max_new_tokens)
        row = self.responses.get(request)
        if row is None:
            return None
        return replace(
            row,
            system=system.name,
            task=question.task,
            part=question.part,
            item=question.item.id,
            group=question.item.cluster,
        )

    def ask(self, systems: Sequence[System], asked: Sequence[Question]) -> None:
        """Asks systems that are no chains. Prompts of similar length are asked together."""
        to_ask, done, sent = list[tuple[System, list[Question]]](), 0, set[str]()
        for system in systems:
            open_ = [q for q in asked if self.get(system, q) is None]
            open_.sort(key=lambda q: (q.part == STEPS, len(q.prompt), q.prompt))
            # A router by text is asked as the adapters that it chooses, some of which are asked
            # the same before it.
            parts = dict[Any, tuple[System, list[Question]]]()
            for question in open_:
                one = system.answering(question.prompt)
                request = request_of(self.scorer, one, question, self.max_new_tokens)
                if one is system or request not in sent:
                    who = one.composition and tuple(map(id, one.composition.experts))
                    parts.setdefault(who, (one, []))[1].append(question)
                sent.add(request)
            to_ask += parts.values()
        names = list(dict.fromkeys(system.name for system, _ in to_ask))
        places = {
            name: f"{display_name(name)}, system {at} of {len(names)}"
            for at, name in enumerate(names, 1)
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
                    yield system, ask(scorer, batch, system, self.max_new_tokens)

    def ask_chain(
        self, system: System, tasks: Sequence[Task], asked: Sequence[Question]
    ) -> list[ItemResult]:
        """Asks the base and each adapter the open hops, then runs the chain over the hops.

        Its results of the hops are those of the members that answer them.
        """
        members = _members(system)
        self.ask(members, [question for question in asked if question.part.hop])
        results = dict[Question, ItemResult | None]()
        for task in tasks:
            walks = self.walks(system, task)
            own = [q for q in asked if q.task == task.name and q.item.hops]
            for question in own:
                if hop := question.part.hop:
                    results[question] = self.get(walks[question.item.id][hop - 1], question)
            composed = [question for question in own if question.part == QUESTION]
            results |= replace(self, asking=None)._chained(composed, walks, members)
        rows = [results.get(question) for question in asked]
        return [replace(row, system=system.name) for row in rows if row is not None]

    def _chained(
        self,
        asked: Sequence[Question],
        walks: Mapping[str, Sequence[System]],
        members: Sequence[System],
    ) -> dict[Question, ItemResult]:
        """The chain's answers to composed questions of items that have hops.

        A step asks all items of one member together. The last hop's answer is judged as the answer
        of the item, by its choices if it has any; a member that has answered the same prompt as a
        hop is not asked again for it.
        """
        answers: dict[Question, list[str]] = {question: [] for question in asked}
        results = dict[Question, ItemResult]()
        for k in range(max((len(question.item.hops) for question in asked), default=0)):
            for member in members:
                steps = {
                    q: _hop_question(q, k, answers[q])
                    for q in asked
                    if len(q.item.hops) > k and walks[q.item.id][k].name == member.name
                }
                said = dict[Question, ItemResult]()
                for step in steps.values():
                    row = self.get(member, replace(step, part=hop_part(k)))
                    if row is not None and row.metric == step.metric == "exact_match":
                        said[step] = step.judged(member.name, row.text, row.cut)
                self.ask([member], [step for step in steps.values() if step not in said])
                for question, step in steps.items():
                    row = said.get(step) or self.get(member, step)
                    assert row is not None
                    answers[question].append(row.text)
                    if step.part == QUESTION:
                        results[question] = row
        return results

    def walks(self, system: System, task: Task) -> dict[str, list[System]]:
        """Item -> the member of a chain, an adapter or the base, that answers each of its hops.

        The hops of the base and of every adapter have to be answered. Hops at the same place for
        which the task names the same adapter, or none, go to the member with the best score on
        them: of equals the adapter that is named, then the base, then the first adapter.
        """
        groups: dict[tuple[ItemPart, str | None], list[Question]] = {}
        for question in questions([task]):
            if hop := question.part.hop:
                named = question.item.hops[hop - 1].adapter
                groups.setdefault((question.part, named), []).append(question)

        def merit(member: System, asked: Sequence[Question]) -> float:
            values = [row.merit for q in asked if (row := self.get(member, q)) is not None]
            return sum(values) / len(values) if values else float("-inf")

        best, members = {}, _members(system)
        for (part, named), asked in groups.items():
            merits = [merit(member, asked) for member in members]
            equals = [m for m, value in zip(members, merits, strict=True) if value == max(merits)]
            best[part, named] = next((m for m in equals if m.name == named), equals[0])
        return {
            item.id: [best[hop_part(k), hop.adapter] for k, hop in enumerate(item.hops)]
            for item in task.items
            if item.hops
        }

    def chain_hops(self, systems: Sequence[System], tasks: Sequence[Task]) -> tuple[ChainHop, ...]:
        """Who answers each hop of the chain of these systems, task by task, for the report."""
        hops, chat = [], self.scorer.chat_template
        for system, task in ((s, t) for s in systems if s.kind == "chain" for t in tasks):
            groups: dict[tuple[str, ...], list[str]] = {}
            for item, walk in self.walks(system, task).items():
                groups.setdefault(tuple(member.name for member in walk), []).append(item)
            prompts = {item.id: item.hops for item in task.items}
            for named, items in sorted(groups.items(), key=lambda group: -len(group[1])):
                for k, (member, hop) in enumerate(zip(named, prompts[items[0]], strict=True), 1):
                    of = task.name, k, member, hop.prompt, items[0], len(items)
                    hops.append(ChainHop(*of, chat))
        return tuple(hops)

    def _report(self, name: str, done: int, total: int) -> None:
        if self.progress is not None:
            self.progress(f"evaluate {name}", done, total)


def _members(chain: System) -> list[System]:
    """The base and the single adapters of a chain, one of which answers each hop."""
    return [System(BASE, "base"), *map(System.alone, chain.chain)]


def request_of(
    scorer: Scorer, system: System, question: Question, max_new_tokens: int | None
) -> str:
    """By what an answer is kept: what the system computes, what is asked, and in which form.

    A system whose content is not known goes by its name, which starts with NAMED.
    """
    system = system.answering(question.prompt)
    of = BASE if system.kind == "base" else system.content or f"{NAMED}{system.name}"
    prompt = hashlib.sha256(question.prompt.encode()).hexdigest()[:DIGITS]
    asked = f"{question.item.content} {question.part} {prompt}"
    form = "chat" if scorer.chat_template else "plain"
    return f"{of} {asked} {form} {max_new_tokens}"


def batches(items: Sequence[T]) -> list[Sequence[T]]:
    """The items in parts of at most BATCH."""
    return [items[at : at + BATCH] for at in range(0, len(items), BATCH)]


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
    scorer: Scorer, batch: Sequence[Question], system: System, max_new_tokens: int | None = None
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
            found[q] = q.result(system.name, value, text)
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
            found[q] = q.judged(system.name, reply.text, reply.cut)
    asked = [q for q in batch if not q.generated and q not in found]
    if asked:
        likely = scorer.loglikelihood([(q.prompt, text) for q in asked for text in q.continuations])
        scores = iter([(one.logprob, one.tokens) for one in likely])
        for q in asked:
            found[q] = q.scored(system.name, [next(scores) for _ in q.continuations])
    return [replace(found[q], request=request_of(scorer, system, q, max_new_tokens)) for q in batch]
