"""Asks a model the questions of tasks, of every system; answers are kept in memory or in a file.

`run_systems` asks every system the parts of every item that it has not answered yet. The *chain*
asks each hop of the adapter, or of the base, that answers it best, and puts the answer into the
next hop's prompt. It needs no merging, so it is the alternative to every composition.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from loraprobe.defaults import (
    HARNESS,
    PLAIN_TOKENS,
    TEMPLATE_ITEMS,
    TEMPLATE_LEAD,
    TEMPLATE_SAMPLES,
    WORKED_TOKENS,
)
from loraprobe.errors import OutputError, UsageError
from loraprobe.evaluation.plan import (
    BASE,
    Question,
    System,
    questions,
    spread_sample,
)
from loraprobe.formatting import listing
from loraprobe.records import (
    QUESTION,
    STEPS,
    ChainHop,
    Coverage,
    ItemPart,
    ItemResult,
    Progress,
    hop_part,
)
from loraprobe.results import CURE, NAME, JsonLines
from loraprobe.tasks import METRICS, Item, Task, fill, item_metric

if TYPE_CHECKING:
    from loraprobe.composition import Composition
    from loraprobe.scoring import Likelihood, Scorer

BATCH = 256  # questions between two appends to the ledger
FLAGS = {"contains", "cut"}
MOST_LOSS = 1e4  # nats per token; `scoring` clamps log-probabilities at -1e4

Key = tuple[str, str, str, str]  # system, task, part, item


class QuestionBatch(NamedTuple):
    """Questions that one system answers together, a part of the work of a cluster."""

    system: System
    questions: Sequence[Question]


BatchAnswers = Iterable[tuple[QuestionBatch, list[ItemResult]]]
Asking = Callable[[Sequence[QuestionBatch]], BatchAnswers]


def run_systems(
    scorer: Scorer,
    systems: Sequence[System],
    tasks: Sequence[Task],
    ledger: Ledger,
    *,
    metric: str | None = None,
    max_new_tokens: int | None = None,
    progress: Progress | None = None,
    parts: Collection[str] | None = None,
    asking: Asking | None = None,
) -> list[ItemResult]:
    """The result of every system on every part of every item, or on `parts`; chains come last.

    Results in the ledger are not computed again, and new results are added to it in batches. Hops
    are scored with gold answers of earlier hops. A chain is scored only on items with hops; the
    results of its hops are those of the base or the adapters that answer them. The order of the
    results is that of systems and questions, whatever the order in the ledger is.

    asking: answers batches in any order, in place of the scorer (chains are always asked of it).
    Raises UsageError if two systems or two tasks share a name, OutputError if a result of the
    ledger does not fit its question.
    """
    for named, what in ((systems, "systems"), (tasks, "tasks")):
        for name, times in Counter(one.name for one in named).items():
            if times > 1:
                raise UsageError(f"Two {what} are named {name!r}: give each its own name.")
    run = _Run(scorer, ledger, metric, max_new_tokens, progress)
    asked = [q for q in questions(tasks, metric) if parts is None or q.part in parts]
    run.ask([system for system in systems if system.kind != "chain"], asked, asking)
    for system in systems:
        if system.kind == "chain":
            run.chain(system, tasks, [q for q in asked if q.part.hop])
    return [
        replace(_checked(result, question, ledger), system=system.name)
        for system in systems
        for question in asked
        if (result := ledger.get(system.key, *question.key))
    ]


def _checked(result: ItemResult, question: Question, ledger: Ledger) -> ItemResult:
    """A result of the ledger. Raises OutputError if it does not fit its question."""
    if (result.metric, result.group) != (question.metric, question.item.cluster):
        raise OutputError(
            f"{ledger.path} holds a result of item {result.item!r} that does not "
            f"fit task {result.task}: {CURE}"
        )
    return result


@dataclass(frozen=True)
class _Run:
    """What all systems of one call of `run_systems` share."""

    scorer: Scorer
    ledger: Ledger
    metric: str | None
    max_new_tokens: int | None
    progress: Progress | None

    def ask(
        self, systems: Sequence[System], asked: Sequence[Question], asking: Asking | None = None
    ) -> None:
        """Appends the answers that are not kept yet to the ledger as they come.

        Prompts of similar length are asked together. asking: None for the scorer.
        """
        batches, done, totals = list[QuestionBatch](), Counter[str](), Counter[str]()
        for system in systems:
            open_ = [q for q in asked if self.ledger.get(system.key, *q.key) is None]
            open_.sort(key=lambda q: (q.part == STEPS, len(q.prompt), q.prompt))
            parts = [open_[at : at + BATCH] for at in range(0, len(open_), BATCH)]
            batches += [QuestionBatch(system, part) for part in parts]
            totals[system.name] += len(open_)
        for batch, rows in (asking or self._here)(batches):
            name = batch.system.name
            self.ledger.append(rows)
            done[name] += len(rows)
            self._report(name, done[name], totals[name])

    def _here(self, batches: Sequence[QuestionBatch]) -> BatchAnswers:
        """The scorer's own answers, in order; each system is put into the model once."""
        for _, group in groupby(batches, key=lambda batch: batch.system.key):
            of_one = list(group)
            system = of_one[0].system
            self._report(system.name, 0, sum(len(batch.questions) for batch in of_one))
            with self.scorer.with_composition(system.composition):
                for batch in of_one:
                    asked = batch.questions
                    yield batch, ask(self.scorer, asked, system.key, self.max_new_tokens)

    def chain(self, system: System, tasks: Sequence[Task], hops: Sequence[Question]) -> None:
        """Asks the base and each adapter the open hops, then runs the chain over the hops.

        With more items another member may be the best at a hop. Items whose hops were answered
        otherwise by an earlier plan are asked again.
        """
        kept = self.ledger.get
        self.ask(
            [System(BASE, "base"), *(System(s.name, "adapter", s) for s in system.chain)], hops
        )
        for task in tasks:
            members = members_of_hops(system, task, self.ledger)
            rows = [
                kept(name, task.name, hop_part(k), item)
                for item, names in members.items()
                for k, name in enumerate(names)
            ]
            planned = [replace(row, system=system.name) for row in rows if row is not None]
            changed = [row for row in planned if kept(*row.key) != row]
            again = {row.item for row in changed if kept(*row.key) is not None}
            self.ledger.append(changed)
            open_ = [
                item
                for item in task.items
                if item.hops
                and (item.id in again or not kept(system.name, task.name, QUESTION, item.id))
            ]
            for start in range(0, len(open_), BATCH):
                self._report(system.name, start, len(open_))
                self.ledger.append(
                    self._chained(system, task, open_[start : start + BATCH], members)
                )
            if task.has_hops:
                self._report(system.name, len(open_), len(open_))

    def _chained(
        self,
        system: System,
        task: Task,
        items: Sequence[Item],
        members: Mapping[str, Sequence[str]],
    ) -> list[ItemResult]:
        """The chain's answers to the composed question of these items, all of which have hops.

        A step asks all items of one member together. The last hop's answer is judged as the answer
        of the item, by its choices if it has any. A question is not asked again if the ledger has
        the member's answer to the same prompt.
        """
        compositions = {BASE: None, **{single.name: single for single in system.chain}}
        answers: dict[str, list[str]] = {item.id: [] for item in items}
        results: list[ItemResult] = []
        for k in range(max(len(item.hops) for item in items)):
            for name, composition in compositions.items():
                step = [i for i in items if len(i.hops) > k and members[i.id][k] == name]
                asked = [self._hop_question(task, item, k, answers[item.id]) for item in step]
                said = {}
                for question in asked:
                    row = self.ledger.get(name, task.name, hop_part(k), question.item.id)
                    same = question.prompt == question.item.hop_prompt(k)
                    if row is not None and same and row.metric == question.metric == "exact_match":
                        said[question] = question.judged(system.name, row.text, row.cut)
                if open_ := [question for question in asked if question not in said]:
                    with self.scorer.with_composition(composition):
                        new = ask(self.scorer, open_, system.name, self.max_new_tokens)
                    said.update(zip(open_, new, strict=True))
                for question in asked:
                    answers[question.item.id].append(said[question].text)
                    results += [said[question]] if question.part == QUESTION else []
        return results

    def _hop_question(self, task: Task, item: Item, k: int, earlier: Sequence[str]) -> Question:
        """Hop k after the answers to earlier hops; the last hop asks for the item's answer."""
        hop = item.hops[k]
        prompt = fill(hop.prompt, earlier)
        if k + 1 < len(item.hops):
            return Question(task.name, hop_part(k), item, prompt, hop.answers, "exact_match")
        metric = item_metric(item, task.name, self.metric)
        return Question(task.name, QUESTION, item, prompt, item.answers, metric)

    def _report(self, name: str, done: int, total: int) -> None:
        if self.progress is not None:
            self.progress(f"evaluate {name}", done, total)


def members_of_hops(system: System, task: Task, ledger: Ledger) -> dict[str, list[str]]:
    """Item -> the member of a chain, an adapter or the base, that answers each of its hops.

    The ledger must contain the hops of the base and of every adapter. Hops at the same place for
    which the task names the same adapter, or none, go to the member with the best score on them: of
    equals the adapter that is named, then the base, then the first adapter.
    """
    groups: dict[tuple[int, str | None], list[str]] = {}
    for item in task.items:
        for k, hop in enumerate(item.hops):
            groups.setdefault((k, hop.adapter), []).append(item.id)

    def merit(name: str, k: int, items: Sequence[str]) -> float:
        rows = (ledger.get(name, task.name, hop_part(k), item) for item in items)
        values = [-r.value if r.metric == "answer_loss" else r.value for r in rows if r is not None]
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
    systems: Sequence[System], tasks: Sequence[Task], ledger: Ledger, chat: bool
) -> tuple[ChainHop, ...]:
    """Who answers each hop of the chain of these systems, task by task, for the report.

    chat: whether prompts are turns of the chat template.
    """
    found = []
    for system, task in ((s, t) for s in systems if s.kind == "chain" for t in tasks):
        groups: dict[tuple[str, ...], list[str]] = {}
        for item, members in members_of_hops(system, task, ledger).items():
            groups.setdefault(tuple(members), []).append(item)
        prompts = {item.id: item.hops for item in task.items}
        for named, items in sorted(groups.items(), key=lambda group: -len(group[1])):
            for k, (member, hop) in enumerate(zip(named, prompts[items[0]], strict=True), 1):
                of = task.name, k, member, hop.prompt, items[0], len(items)
                found.append(ChainHop(*of, chat))
    return tuple(found)


def chain_notes(systems: Sequence[System], tasks: Sequence[Task]) -> tuple[str, ...]:
    """Notes for a report on tasks that name adapters which are not present."""
    notes = []
    for system in (system for system in systems if system.kind == "chain"):
        names = [single.name for single in system.chain]
        for task in tasks:
            wanted = {hop.adapter for item in task.items for hop in item.hops if hop.adapter}
            for missing in sorted(wanted - set(names)):
                notes.append(
                    f"Task {task.name} names the adapter {missing!r} for a hop, which is "
                    f"none of {', '.join(names)}; in {system.name} whoever has the best "
                    "score on that hop answers it, an adapter or the base."
                )
    return tuple(notes)


def ask(
    scorer: Scorer, batch: Sequence[Question], system: str, max_new_tokens: int | None = None
) -> list[ItemResult]:
    """The results of a batch, in its order, from a scorer whose model carries the system.

    max_new_tokens: of each reply; None for the number of its question.
    """
    outside = [q for q in batch if q.item.source is not None]
    found = ask_harness(scorer, outside, system) if outside else {}
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


def ask_harness(
    scorer: Scorer, batch: Sequence[Question], system: str
) -> dict[Question, ItemResult]:
    """The results of questions, all of the harness, from a model that carries the system.

    The requests of all tasks go to the model together. Raises TaskError for a task that the harness
    cannot judge.
    """
    from loraprobe.scoring.system_lm import SystemLM

    lm = SystemLM(scorer)
    by_task: dict[Any, list[Question]] = defaultdict(list)
    for question in batch:
        by_task[question.item.source].append(question)
    asked = {
        task: task.requests([question.item.id for question in own], lm)
        for task, own in by_task.items()
    }
    by_kind: dict[str, list[Any]] = defaultdict(list)
    for request in (one for requests in asked.values() for one in requests):
        by_kind[request.request_type] += [request] * (request.repeats or 1)
    for kind, requests in by_kind.items():
        for request, reply in zip(requests, getattr(lm, kind)(requests), strict=True):
            request.resps.append(reply)
    return {
        question: question.result(system, value, text)
        for task, own in by_task.items()
        for question, (value, text) in zip(own, task.values(asked[task]), strict=True)
    }


@dataclass(frozen=True)
class ScoreRequest:
    """A request for the base model's likelihood of a continuation of a prompt.

    raw: without the chat template, for texts that are not questions.
    """

    prompt: str
    continuation: str
    raw: bool = False


def likelihoods(
    scorer: Scorer, requests: Sequence[ScoreRequest], progress: Progress | None = None
) -> dict[ScoreRequest, Likelihood]:
    """A Likelihood of the base for each distinct request: one call of the scorer for each form."""
    likely: dict[ScoreRequest, Likelihood] = {}
    distinct = list(dict.fromkeys(requests))
    for raw in (False, True):
        asked = [r for r in distinct if (r.raw and bool(scorer.chat_template)) == raw]
        if not asked:
            continue
        plain = scorer.with_template(False) if raw else scorer
        with plain.with_composition(None):
            found = plain.loglikelihood([(r.prompt, r.continuation) for r in asked])
        likely.update(zip(asked, found, strict=True))
        if progress is not None:
            progress("cover", len(likely), len(distinct))
    return likely


def choose_template(
    scorer: Scorer,
    singles: Sequence[Composition],
    tasks: Sequence[Task],
    *,
    seed: int = 0,
    metric: str | None = None,
    max_new_tokens: int | None = None,
    kept: Ledger | None = None,
    known: Callable[[], tuple[bool, str]] = lambda: (False, "their form is not known"),
    progress: Progress | None = None,
) -> tuple[bool, str, Coverage | None]:
    """Whether prompts should be user turns of the chat template, why, and the two accuracies.

    The better form depends on the adapters' training. Each adapter answers a few questions and hops
    with and without the template; more of them unless one form is shown to be better
    (`TEMPLATE_LEAD`) or both are shown to be good; and worked ones where no answer differs. A
    question counts with its best adapter, so nobody is asked what another one answered rightly. A
    hop is right if its answer stands in the reply. If both forms are equally good, `known` says
    which one is known and from what. What `kept` holds is not asked again, and new answers are
    added to it, under the names of `stored_as`. Returns False if the tokenizer has no template;
    accuracies are None then and where losses are compared.
    """
    try:
        ways = {False: scorer.with_template(False), True: scorer.with_template(True)}
    except UsageError:
        return False, "The tokenizer has no chat template; prompts are asked as they are.", None
    ledger = Ledger() if kept is None else kept
    samples = [
        [q for task in tasks for q in _sampled(task, most // len(tasks), seed, metric)]
        for most in TEMPLATE_SAMPLES
    ]
    plain = [[question for question in of if not question.worked] for of in samples]
    for asked in (*plain, samples[-1]):
        values, total = dict[bool, list[float]](), 2 * len(singles) * len(asked)
        for used, way in ways.items():
            told = _counted(progress, "template", used * total // 2, total)
            best = dict.fromkeys(asked, -math.inf)
            for one in singles:
                system = System(stored_as(one.name, used), "adapter", one)
                left = [question for question in asked if best[question] < 1]
                _Run(way, ledger, metric, max_new_tokens, told).ask([system], left)
                best |= {q: max(best[q], _value(ledger, system, q)) for q in left}
            values[used] = list(best.values())
        pairs = list(zip(values[True], values[False], strict=True))
        lead = abs(sum((one > other) - (one < other) for one, other in pairs))
        equal = lead == 0 and 2 * sum(one == other > 0 for one, other in pairs) >= len(pairs)
        # Worked answers are long, so they are asked only where no others differ.
        enough = 1 if asked is plain[-1] else TEMPLATE_LEAD
        if lead >= enough or (equal and asked is not plain[0]):
            break
    means = {used: sum(own) / len(asked) for used, own in values.items()}
    chosen, why = means[True] > means[False], ""
    if means[True] == means[False]:
        chosen, from_what = known()
        why = f"; {from_what}"
    losses = all(question.metric == "answer_loss" for question in asked)
    parts = Counter(q.part.words for q in asked)
    why = (
        f"Chat template {'on' if chosen else 'off'}: the best single adapter's "
        f"{'mean log-likelihood' if losses else 'accuracy'} on {len(asked)} sampled questions "
        f"({listing(f'{n} {part}' for part, n in parts.items())}) was {means[True]:.2f} with it "
        f"and {means[False]:.2f} without{why}."
    )
    row = Coverage("chat_template", asked[0].task, means[True], len(asked), baseline=means[False])
    return chosen, why, None if losses else row


def _counted(progress: Progress | None, stage: str, before: int, total: int) -> Progress | None:
    """Counts the answers of all systems together, in place of those of each."""
    if progress is None:
        return None
    done = dict[str, int]()

    def tell(system: str, answers: int, _: int) -> None:
        done[system] = answers
        progress(stage, before + sum(done.values()), total)

    return tell


def _sampled(task: Task, most: int, seed: int, metric: str | None) -> Iterator[Question]:
    """About `most` questions and hops of a task, each part in proportion, and a few worked ones.

    They are those of the first items that the evaluation asks, which finds the answers. The longest
    replies to worked questions have together at most as many tokens as the others.
    """
    plain = len([part for part in task.parts if part != STEPS])
    items = min(max(TEMPLATE_ITEMS, round(most / plain)), len(task.items))
    worked = max(1, items * plain * PLAIN_TOKENS // WORKED_TOKENS)
    few = {item.id for item in spread_sample(task, worked, seed).items}
    for question in questions([spread_sample(task, items, seed)], metric):
        if not question.worked or question.item.id in few:
            yield question


def stored_as(adapter: str, chat_template: bool) -> str:
    """The name under which a ledger keeps an adapter's answers in one form of the prompt."""
    return f"{adapter}, {'with' if chat_template else 'without'} the chat template"


def _value(ledger: Ledger, system: System, question: Question) -> float:
    """How good a kept answer is; losses are negative, a hop is right if its answer stands there."""
    row = ledger.get(system.name, *question.key)
    assert row is not None
    if row.metric == "answer_loss":
        return -row.value
    return float(row.stands) if row.part.hop else row.value


# ---- kept answers --------------------------------------------------------------------------------


class Ledger(JsonLines[ItemResult]):
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
        self._results: dict[Key, ItemResult] = {row.key: row for row in self.rows}

    def append(self, rows: Iterable[ItemResult]) -> None:
        """Add a batch and write it to the disk before returning."""
        batch = list(rows)
        if batch:
            super().append(map(dataclasses.asdict, batch))
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

    Its value must be 0 or 1, for a metric of lm-evaluation-harness from 0 to 1, and for the metric
    "answer_loss" between 0 and MOST_LOSS nats.
    Rows of earlier versions have no FLAGS.
    """
    names = {field.name for field in dataclasses.fields(ItemResult)}
    if not (isinstance(row, dict) and names - FLAGS <= row.keys() <= names):
        raise ValueError("other keys")
    if not all(isinstance(row[flag], bool) for flag in FLAGS & row.keys()):
        raise ValueError("another type")
    value, texts = row["value"], [row[name] for name in names - FLAGS - {"value"}]
    if type(value) is not float or not all(isinstance(text, str) for text in texts):
        raise ValueError("another type")
    "".join(texts).encode("utf-8")  # a lone surrogate is a ValueError
    harness = row["metric"].startswith(HARNESS)
    if not (harness or row["metric"] in METRICS):
        raise ValueError("an unknown metric")
    most = MOST_LOSS if row["metric"] == "answer_loss" else 1.0
    sound = 0 <= value <= most and (harness or most > 1 or value in (0, 1))
    if not sound:
        raise ValueError("no value of this metric")
    return ItemResult(**row | {"part": ItemPart(row["part"])})
