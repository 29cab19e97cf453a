r"""How the answer in a generated text is read, how it is judged, and by which metric.

The answer to a plain prompt is the first line of the continuation (`json` and answers of several
lines read more). The answer of a worked text follows the last of ``####``, ``\boxed{}``, "answer
is" or the item's own pattern. A text without any of these must end with the answer. `judge` also
tells whether a right answer stands in that reading in other words, which no metric but `contains`
counts as right.

The item's own key `metric` is chosen before `--metric NAME=metric` of its task, and that before
`--metric metric` for all tasks. Without any, an item with choices has `choice`; for the others the
gold answers of the task decide (`auto_metric`). `answer_loss` is for all tasks at once: a loss and
a share do not go into one mean.
"""

from __future__ import annotations

import json
import math
import string
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any, Literal, cast

import regex

from loraprobe.defaults import SPOILED
from loraprobe.errors import TaskError, UsageError
from loraprobe.formatting import nearest
from loraprobe.patterns import PatternError, compiled
from loraprobe.tasks.items import Item, Task

Metric = Literal[
    "exact_match", "strict", "contains", "json", "numeric", "regex", "choice", "answer_loss"
]
GENERATED: tuple[Metric, ...] = ("exact_match", "strict", "contains", "json", "numeric", "regex")
ITEM_METRICS: tuple[Metric, ...] = (*GENERATED, "choice")
METRICS: tuple[Metric, ...] = (*ITEM_METRICS, "answer_loss")
AUTO = "auto"  # of --metric: the gold answers decide
PATTERN_SECONDS = 1.0

ARTICLES = frozenset(("a", "an", "the"))
_PLAIN_NUMBER = regex.compile(
    r"[^\w\-+.]*([-+]?)[^\w\-+.]*(\d{1,3}(?:,\d{3})+|\d+)?(?:\.(\d+))?\W*"
)
_ANSWER_IS = regex.compile(r"\banswer\s+is\b[\s:=]*", regex.IGNORECASE)
# The end of a sentence, except after some frequent abbreviations.
_SENTENCE_END = regex.compile(r"(?<!\b(?:St|Mr|Mrs|Ms|Dr|Prof|Mt|Ft))[.!?]+(?=\s|$)")
_MARKS = {
    "####": regex.compile("####"),
    "boxed": regex.compile(r"\\boxed\b"),
    "answer is": _ANSWER_IS,
}
_ANSWER_LINE = {  # the mark, an answer, and the end of its line
    "####": regex.compile(r"####\s*+\S[^\n]*+\n"),
    "boxed": regex.compile(r"\\boxed(\{(?:[^{}\n]++|(?1))*+\})[^\n]*+\n"),
    "answer is": regex.compile(_ANSWER_IS.pattern + r"+\S[^\n]*+\n", regex.IGNORECASE),
}
# What stands between the braces of \boxed{}, to be searched for behind the first brace.
_BRACED = regex.compile(r"((?:[^{}]++|\{(?1)\})*+)\}")
_TEXT_COMMAND = regex.compile(r"\\(?:text|textbf|mathrm|mathbf)\s*\{([^{}]*)\}")

# Of numbers that are not both whole. Single precision has 24 bits, so a result is off by 6e-8 and a
# sum of a few by some 1e-7; numbers of up to six digits, which people write, still differ.
TOLERANCE = 1e-6

_NUMBER = regex.compile(
    r"(?:(?<![\w)\]])[-+\u2212]\p{Sc}?)?(?:(?:\d{1,3}(?:,\d{3})+(?![\d,])|\d+)(?:\.\d+)?|(?<!\d)\.\d+)"
    r"(?:[eE][-+]?\d+(?!\w)|/\d+(?![\d.]))?"
)
# A number alone, with a sign of currency or percent. "007" is the name of something, no number.
_AMOUNT = regex.compile(
    rf"(?![-+\u2212\p{{Sc}}\s]*0\d)\p{{Sc}}?\s?{_NUMBER.pattern}\s?[%\p{{Sc}}]?\.?"
)
_WORD = regex.compile(r"\w+")
_BETWEEN_LETTERS = regex.compile(r"(?<=\p{L})\p{P}+(?=\p{L})")
# Letters of scripts that are written without spaces count as words of their own.
_UNSPACED = regex.compile(r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]")
_NORMAL_NUMBER = regex.compile(r"-?\d+(\.\d+)?")  # so that "5,600" is "5600"
# Signs of formal languages; those that prose has as well say nothing.
_FORMAL = frozenset(string.punctuation) - frozenset(".,;:!?'\"()-/&%$")


def normalize_answer(text: str) -> str:
    """The text in lower case without punctuation, articles and repeated spaces, as in SQuAD.

    There are three differences to SQuAD's script. Numbers keep their sign and decimals ("3.5" is
    not "35", but "$1,000.00" is "1000"). Punctuation of every script is removed. An answer that
    consists only of an article or a symbol (the choice "A") stays.
    """
    text = unicodedata.normalize("NFKC", text).lower().replace("\u2212", "-")
    words = [plain for word in text.split() if (plain := _plain(word))]
    kept = [word for word in words if word not in ARTICLES]
    return " ".join(kept or words) or " ".join(text.split())


def _plain(word: str) -> str:
    number = _PLAIN_NUMBER.fullmatch(word)
    if number and (number.group(2) or number.group(3)):
        sign, whole, decimals = (number.group(i) or "" for i in (1, 2, 3))
        digits = (whole or "0").replace(",", "")
        decimals = decimals.rstrip("0")
        value = f"{digits}.{decimals}" if decimals else digits
        return f"-{value}" if sign == "-" and value.strip("0.") else value
    marks = {ch for ch in word if unicodedata.category(ch).startswith("P")}
    return "".join(ch for ch in word if ch not in string.punctuation and ch not in marks)


def exact_match(prediction: str, answers: Sequence[str]) -> bool:
    """Whether the prediction equals one of the answers after `normalize_answer`."""
    own = normalize_answer(prediction)
    return bool(own) and any(own == normalize_answer(answer) for answer in answers)


def answered(
    text: str, answers: Sequence[str], *, cot: bool = False, pattern: str | None = None
) -> bool:
    """Whether the answer in a continuation is one of the answers.

    Without `cot` it is the first line that is not blank. With `cot` it is the text after the last
    marker, up to the end of the sentence (after "answer is") or of the line (after ``####``); a
    text without any marker is right if it ends with the answer, in whole words. Raises TaskError if
    `pattern` takes too long.
    """
    if not cot:
        return exact_match(_first_line(text), answers)
    marked = _marked(text, pattern)
    if marked:
        return any(exact_match(reading, answers) for reading in marked)
    words = normalize_answer(text).split()
    golds = [normalize_answer(answer).split() for answer in answers]
    return any(gold and words[-len(gold) :] == gold for gold in golds)


def possible_answers(text: str, *, cot: bool = False, pattern: str | None = None) -> list[str]:
    """The readings of a continuation that may be its answer, at least one; the first is likeliest.

    Without `cot` the first line, with it the texts after the last marker, else the last sentence
    and the last line.
    """
    if not cot:
        return [_first_line(text)]
    if marked := _marked(text, pattern):
        return marked
    line = next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")
    starts = [end.end() for end in _SENTENCE_END.finditer(line) if line[end.end() :].strip()]
    return [line[starts[-1] if starts else 0 :].strip(), line]


def asked_marks(prompt: str) -> tuple[str, ...]:
    """The marks of an answer that a prompt shows or asks for."""
    return tuple(name for name, mark in _MARKS.items() if mark.search(prompt))


def answer_end(text: str, marks: Sequence[str]) -> int | None:
    """Where the first line ends that holds one of the marks and an answer; None without one.

    A model that goes on after an answer in the form that was asked for writes about something
    else, so a worked text counts up to there.
    """
    ends = [found.end() for name in marks if (found := _ANSWER_LINE[name].search(text))]
    return min(ends, default=None)


def _first_line(text: str) -> str:
    return next((line.strip() for line in text.splitlines() if line.strip()), "")


def _marked(text: str, pattern: str | None) -> list[str]:
    """The possible answers after the last marker in the text; empty without a marker.

    After "answer is" there are two, the sentence and the line, because a full stop may belong to
    the answer ("J. K. Rowling").
    """
    found: list[tuple[int, int, list[str]]] = []
    if (at := text.rfind("####")) >= 0:
        found.append((at + 4, 0, [_first_line(text[at + 4 :])]))
    if (at := text.rfind("\\boxed{")) >= 0:
        braced = _BRACED.match(text, at + 7)
        inner = braced[1] if braced else _first_line(text[at + 7 :])
        found.append((at + 7, 0, [_TEXT_COMMAND.sub(r"\1", inner).strip()]))
    if answer_is := list(_ANSWER_IS.finditer(text)):
        line = _first_line(text[answer_is[-1].end() :])
        sentence = _SENTENCE_END.split(line, 1)[0].strip()
        found.append((answer_is[-1].end(), 0, [sentence, line]))
    if pattern is not None and (match := last_match(pattern, text)) is not None:
        found.append((match[0], 1, [match[1].strip()]))
    return max(found)[2] if found else []


def compile_pattern(pattern: str) -> regex.Pattern[str]:
    """The compiled pattern. Raises TaskError if it is invalid or too large."""
    try:
        return compiled(pattern)
    except PatternError as error:
        raise TaskError(f"answer_pattern {pattern[:100]!r} {error}.") from None


def _greedy(pattern: str) -> TaskError:
    return TaskError(
        f"answer_pattern {pattern[:100]!r} took longer than {PATTERN_SECONDS:g} s on one answer: "
        "write it without nested repetition."
    )


def matches(pattern: str, text: str, whole: bool = True) -> bool:
    """Whether a pattern matches the whole text, or with whole=False a part of it.

    Raises TaskError if it is no pattern or takes too long.
    """
    found = compile_pattern(pattern)
    find = found.fullmatch if whole else found.search
    try:
        return find(text, timeout=PATTERN_SECONDS) is not None
    except (TimeoutError, MemoryError):  # `regex` bounds the memory of one match
        raise _greedy(pattern) from None


def last_match(pattern: str, text: str) -> tuple[int, str] | None:
    """Start and text of the answer in the last match: group 1, or the match without groups."""
    found = compile_pattern(pattern)
    group = 1 if found.groups else 0
    try:
        matches = list(found.finditer(text, timeout=PATTERN_SECONDS))
    except (TimeoutError, MemoryError):
        raise _greedy(pattern) from None
    matches = [match for match in matches if match.group(group) is not None]
    return (matches[-1].start(group), matches[-1].group(group)) if matches else None


@dataclass(frozen=True)
class Judged:
    """Whether a reply is right, whether a right answer stands in it, and the answer as read."""

    right: bool
    contains: bool
    text: str


def judge(
    metric: str,
    text: str,
    answers: Sequence[str],
    *,
    cot: bool = False,
    pattern: str | None = None,
) -> Judged:
    """What a metric of `GENERATED` says of a reply. cot: the reply is a worked text.

    Raises TaskError for answers that the metric cannot use, and for a pattern that takes too long.
    """
    if metric == "exact_match":
        right = answered(text, answers, cot=cot, pattern=pattern)
        readings = possible_answers(text, cot=cot, pattern=pattern)
        stands = right or any(contains(one, answers) for one in readings)
        # without punctuation at its end a plain answer fits into the next hop's prompt
        likeliest = readings[0] if cot else readings[0].rstrip(" .!?,;") or readings[0]
        return Judged(right, stands, likeliest)
    if metric == "regex":
        return _by_pattern(possible_answers(text, cot=cot), [pattern] if pattern else answers)
    found = possible_answers(text, cot=cot, pattern=pattern)
    if metric == "numeric":
        return _by_number(found, text if cot else found[0], answers)
    if metric == "json":
        return _by_value(found if cot else [text], answers)
    if metric == "strict":
        found = found if cot else [_lines(text, answer) for answer in answers]
        right = any(one.strip() == answer.strip() for one in found for answer in answers)
    else:
        right = False
    stands = right or any(contains(one, answers) for one in found)
    return Judged(stands if metric == "contains" else right, stands, found[0].strip())


def check_answers(metric: str, answers: Sequence[str], pattern: str | None) -> None:
    """Raises TaskError for an answer that `metric` cannot compare with."""
    checks = {"json": _gold_value, "numeric": _gold_number, "regex": compile_pattern}
    if metric in checks and not (metric == "regex" and pattern is not None):
        for answer in answers:
            checks[metric](answer)


def contains(text: str, answers: Sequence[str]) -> bool:
    """Whether one of the answers stands in the text as whole words, after `normalize_answer`.

    Letters joined by punctuation are read joined and apart: "Thai/Lao" contains "Lao". A letter of
    a script without spaces is a word. An answer of which nothing but articles is left (the choice
    "A") has to stand there with its case, one of symbols only as it is.
    """
    return any(_holds(text, answer) for answer in answers)


def _holds(text: str, answer: str) -> bool:
    gold = normalize_answer(answer)
    if ARTICLES.issuperset(gold.split()):
        return _stands(_WORD.findall(text), _WORD.findall(answer))
    if not any(map(str.isalnum, gold)):
        return answer.strip() in text
    if _stands(normalize_answer(text).split(), gold.split()):
        return True
    apart, gold_apart = _apart(text), _apart(answer)
    if (apart, gold_apart) == (text, answer):
        return False
    return _stands(normalize_answer(apart).split(), normalize_answer(gold_apart).split())


def _apart(text: str) -> str:
    """The text with spaces for punctuation between letters, and around unspaced letters."""
    return _UNSPACED.sub(r" \g<0> ", _BETWEEN_LETTERS.sub(" ", text))


def _stands(words: Sequence[str], gold: Sequence[str]) -> bool:
    most = len(words) - len(gold)
    return bool(gold) and any(words[k : k + len(gold)] == gold for k in range(most + 1))


def _lines(text: str, answer: str) -> str:
    """As many lines of the text as the answer has, from the first that is not blank."""
    lines = text.strip("\r\n").split("\n")
    first = next((k for k, line in enumerate(lines) if line.strip()), 0)
    return "\n".join(lines[first : first + answer.strip().count("\n") + 1])


def _by_pattern(found: Sequence[str], patterns: Sequence[str]) -> Judged:
    found = [one.strip() for one in found]
    right = any(matches(pattern, one) for pattern in patterns for one in found)
    stands = right or any(matches(p, one, whole=False) for p in patterns for one in found)
    return Judged(right, stands, found[0])


def _by_number(found: Sequence[str], otherwise: str, answers: Sequence[str]) -> Judged:
    """By the last number of the first reading that has one, else of the whole text."""
    golds = [_gold_number(answer) for answer in answers]
    numbers = next((own for own in map(_numbers, [*found, otherwise]) if own), [])
    right = bool(numbers) and any(_equal(numbers[-1][1], gold) for gold in golds)
    stands = any(_equal(value, gold) for _, value in numbers for gold in golds)
    return Judged(right, stands, numbers[-1][0] if numbers else found[0].strip())


def _by_value(found: Sequence[str], answers: Sequence[str]) -> Judged:
    golds = [_gold_value(answer) for answer in answers]
    for text in found:
        own = json_at_start(text)
        if own is not None and any(_same(own[0], gold) for gold in golds):
            return Judged(True, True, own[1])
    first = json_at_start(found[0])
    text = _lines(found[0], "") if first is None else first[1]
    return Judged(False, contains(text, answers), text.strip())


def _numbers(text: str) -> list[tuple[str, Fraction]]:
    """The numbers of a text as they stand in it, and their values."""
    read = ((found[0], _number(found[0])) for found in _NUMBER.finditer(text))
    return [(text, value) for text, value in read if value is not None]


def _number(text: str) -> Fraction | None:
    """None for a number that is too long or too large to compute with, and for x/0."""
    plain = regex.sub(r"[,\p{Sc}]", "", text).replace("\u2212", "-")
    exponent = regex.search(r"[eE][-+]?(\d+)$", plain)
    if len(plain) > 400 or (exponent and (len(exponent[1]) > 3 or int(exponent[1]) > 400)):
        return None
    try:
        return Fraction(plain)
    except (ValueError, ZeroDivisionError):
        return None


def is_amount(answer: str) -> bool:
    """Whether an answer is one number and nothing else but a sign of currency or percent."""
    return _AMOUNT.fullmatch(answer.strip()) is not None and len(_numbers(answer)) == 1


def is_structure(answer: str) -> bool:
    """Whether an answer is a JSON object or list."""
    found = json_at_start(answer)
    return found is not None and isinstance(found[0], dict | list) and found[1] == answer.strip()


def _equal(one: Fraction, other: Fraction) -> bool:
    """Whole numbers must be equal, others up to TOLERANCE of the larger."""
    if one.denominator == other.denominator == 1:
        return one == other
    return abs(one - other) <= Fraction(TOLERANCE) * max(abs(one), abs(other))


def _gold_number(answer: str) -> Fraction:
    found = _numbers(answer)
    if len(found) != 1:
        raise TaskError(
            f"metric numeric needs one number in each answer, and {answer[:60]!r} has "
            f"{len(found)}: write the number alone, or choose another metric."
        )
    return found[0][1]


def json_at_start(text: str) -> tuple[Any, str] | None:
    """The JSON value with which a text starts, and its text; None where there is none.

    A fence (```json) before it is skipped. The rest of the value's last line must be blank.
    """
    text = regex.sub(r"^\s*```\w*[^\S\n]*\n", "", text).lstrip()
    try:
        value, end = _DECODER.raw_decode(text)
    except (ValueError, RecursionError):
        return None
    rest = text[end:].partition("\n")[0].strip().removeprefix("```")
    return None if rest else (value, text[:end])


def json_ended(text: str) -> bool:
    """Whether a text, up to the end of a line, has begun with a whole JSON value or with none."""
    begun = text.lstrip()
    return bool(begun) and (
        not begun.startswith(("{", "[", "```")) or json_at_start(text) is not None
    )


def _refuse(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


_DECODER = json.JSONDecoder(parse_constant=_refuse)


def _gold_value(answer: str) -> Any:
    found = json_at_start(answer)
    if found is None or found[1].strip() != answer.strip():
        raise TaskError(
            f"metric json needs JSON in each answer, and {answer[:60]!r} is none: write it as "
            "JSON, or choose another metric."
        )
    return found[0]


def _same(one: Any, other: Any) -> bool:
    """Whether two JSON values are equal; true is not 1."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    return bool(one == other) and not (isinstance(one, float) and math.isnan(one))


def item_metric(item: Item, task: str, metric: str | None = None) -> Metric:
    """The metric of an item's composed question. metric: the text of `--metric`.

    Raises UsageError for an unknown metric, and for "choice" if the item has no choices.
    """
    if item.source is not None and item.metric is not None:
        return cast(Metric, item.metric)
    given = given_metric(task, metric)
    if given == "answer_loss":
        return "answer_loss"
    chosen = item.metric or given
    if chosen is None:
        return "choice" if item.choices else "exact_match"
    known, of = (METRICS, "") if item.metric is None else (ITEM_METRICS, f" of item {item.id!r}")
    if chosen not in known:
        raise UsageError(f"Unknown metric {chosen!r}{of}: {nearest(chosen, known)}")
    if chosen == "choice" and not item.choices:
        raise UsageError(
            f"Metric choice needs choices, and item {item.id!r} of task {task} has none; "
            "add them, or leave --metric=choice out."
        )
    return chosen


def given_metric(task: str, metric: str | None) -> str | None:
    """What `--metric` gives for a task; None where its gold answers choose (AUTO)."""
    for_all, by_task = named_metrics(metric)
    given = by_task.get(task, for_all)
    return None if given == AUTO else given


def named_metrics(metric: str | None) -> tuple[str | None, dict[str, str]]:
    """The metric for all tasks, and those of single tasks, from "json" or "a=json,b=strict".

    Tasks of lm-evaluation-harness have metrics of their own, so names are not checked here. Raises
    UsageError for several metrics of one task or of all, and for "answer_loss" beside others.
    """
    for_all: str | None = None
    by_task: dict[str, str] = {}
    for entry in metric.split(",") if metric else ():
        task, _, name = entry.rpartition("=")
        if by_task.get(task, for_all if not task else None) is not None:
            raise UsageError(f"--metric names two metrics for {task or 'all tasks'}; give one.")
        if task:
            by_task[task] = name
        else:
            for_all = name
    if "answer_loss" in by_task.values() or (for_all == "answer_loss" and by_task):
        raise UsageError("--metric=answer_loss is for all tasks at once: give no other metric.")
    return for_all, by_task


def check_metrics(tasks: Sequence[Task], metric: str | None) -> None:
    """Raises UsageError for an unknown metric or one of no task, TaskError for unfit answers."""
    for_all, by_task = named_metrics(metric)
    if for_all not in (None, AUTO, *METRICS) and not any(task.of_harness for task in tasks):
        raise UsageError(f"Unknown metric {for_all!r}: {nearest(str(for_all), METRICS)}")
    for name in by_task:
        if name not in (known := [task.name for task in tasks]):
            raise UsageError(f"--metric names the task {name!r}: {nearest(name, known)}")
    for task in tasks:
        for item in task.items:
            try:
                own = item_metric(item, task.name, metric)
                check_answers(own, item.answers, item.answer_pattern)
            except TaskError as error:
                raise TaskError(f"Task {task.name}, item {item.id!r}: {error}") from None


def with_metric(task: Task, metric: str | None) -> Task:
    """The task with what `auto_metric` says; its items have that metric unless another was given.

    metric: the text of `--metric`. A task that has its metric already is returned as it is.
    """
    if task.metric:
        return task
    needs, why = auto_metric(task)
    items = task.items
    if given_metric(task.name, metric) is None:
        items = tuple(
            replace(item, metric=needs) if item.metric is None and _by_gold(item) else item
            for item in items
        )
    named = {str(item_metric(item, task.name, metric)) for item in items}
    return replace(task, items=items, metric="+".join(sorted(named)), needs=needs, why=why)


def auto_metric(task: Task) -> tuple[Metric, str]:
    """The metric that the gold answers of a task need, and why; "" where exact match drops nothing.

    Items with choices or another metric of their own do not count. `json` if all answers are JSON
    objects or lists; `numeric` if all are numbers; `strict` if exact match drops what more than
    SPOILED of the items need: signs of a formal language, such as "C#", or what an answer differs
    by from a commoner one of the same words.
    """
    items = [item for item in task.items if _by_gold(item)]
    every = [answer for item in items for answer in item.answers]
    if every and all(map(is_structure, every)):
        return "json", "all gold answers are JSON objects or lists"
    if every and all(map(is_amount, every)):
        return "numeric", "all gold answers are numbers"
    lost, example = _lost([item.answers[0].strip() for item in items])
    told = f"exact_match drops what matters in {lost:,} of {len(items):,} gold answers ({example})"
    return "strict" if lost > SPOILED * len(items) else "exact_match", told if lost else ""


def _by_gold(item: Item) -> bool:
    """Whether the gold answer of an item may decide its metric."""
    return item.metric in (None, "exact_match") and not (item.choices or item.source)


def _lost(golds: Sequence[str]) -> tuple[int, str]:
    """How many answers hold what exact match drops although it tells them apart, and an example."""
    forms: dict[str, Counter[str]] = {}
    for gold in golds:
        forms.setdefault(normalize_answer(gold), Counter())[gold] += 1
    lost, examples = 0, [""]
    for plain, spelled in forms.items():
        first, *others = (gold for gold, _ in spelled.most_common())
        formal = [g for g in spelled if _FORMAL & set(g) and plain != g.lower()]
        others = [] if _NORMAL_NUMBER.fullmatch(plain) else others
        examples += [repr(gold[:40]) for gold in formal]
        examples += [f"{first[:40]!r} and {other[:40]!r}" for other in others]
        lost += sum(spelled[gold] for gold in {*formal, *others})
    return lost, examples[-1]


def is_generated(metric: str) -> bool:
    """Whether a score's metric, or one of several joined by "+", judges generated texts."""
    return not set(GENERATED).isdisjoint(metric.split("+"))
