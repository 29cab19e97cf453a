r"""How a reply is judged: how the answer in it is read, and whether it is one of the right ones.

The answer to a plain prompt is the first line of the continuation. The answer of a worked text
follows the last of ``####``, ``\boxed{}``, "answer is" or the item's own pattern. A text without
any of these must end with the answer.

A metric is a class of this file and an entry of `METRICS`, under the name that `--metric` takes.
The item's own key `metric` is chosen before `--metric NAME=metric` of its task, and that before
`--metric metric` for all tasks. Without any, an item with choices has `choice`; for the others the
gold answers of the task decide (`auto_metric`). `answer_loss` is for all tasks at once: a loss and
a share do not go into one mean.
"""

from __future__ import annotations

import json
import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any, NamedTuple

import regex

from loraprobe.defaults import LOSS, SPOILED
from loraprobe.errors import TaskError, UsageError
from loraprobe.formatting import nearest
from loraprobe.patterns import PatternError, compiled
from loraprobe.tasks.items import Item, Task, of_one_question
from loraprobe.untrusted import nested_values

PATTERN_SECONDS = 1.0
LONGEST_REPLY = 200_000  # characters of a reply that are judged

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
_BRACE = regex.compile(r"\\boxed\{|[{}]")
# What stands between the braces of \boxed{}, to be searched for behind the first brace.
_BRACED = regex.compile(r"((?:[^{}]++|\{(?1)\})*+)\}")
_INK = regex.compile(r"\S")
_TEXT_COMMAND = regex.compile(r"\\(?:text|textbf|mathrm|mathbf)\s*\{([^{}]*)\}")
_WORD = regex.compile(r"\w+")
_BETWEEN_LETTERS = regex.compile(r"(?<=\p{L})\p{P}+(?=\p{L})")
# Letters of scripts that are written without spaces count as words of their own.
_UNSPACED = regex.compile(r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]")
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
AUTO = "auto"  # of --metric: the gold answers decide
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
    without_articles = [word for word in words if word not in ARTICLES]
    return " ".join(without_articles or words) or " ".join(text.split())


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
    said = normalize_answer(prediction)
    return bool(said) and any(said == normalize_answer(answer) for answer in answers)


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


def possible_answers(text: str, *, cot: bool, pattern: str | None = None) -> list[str]:
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
    ends = [
        _boxed_end(text) if name == "boxed" else _marked_end(_MARKS[name], text) for name in marks
    ]
    return min((end for end in ends if end is not None), default=None)


def _marked_end(mark: regex.Pattern[str], text: str) -> int | None:
    """Where the line ends that holds the first mark and what follows it.

    Where no line ends after the first mark, none does after a later one.
    """
    marked = mark.search(text)
    begun = _INK.search(text, marked.end()) if marked else None
    end = text.find("\n", begun.start()) if begun else -1
    return end + 1 if end >= 0 else None


def _boxed_end(text: str) -> int | None:
    """Where the first line ends that holds a whole \\boxed{}."""
    end = 0
    for line in text.split("\n")[:-1]:
        end, opened = end + len(line) + 1, list[bool]()
        for brace in _BRACE.finditer(line) if "\\boxed{" in line else ():
            if brace[0] != "}":
                opened.append(brace[0] != "{")
            elif opened and opened.pop():
                return end
    return None


def _first_line(text: str) -> str:
    return next((line.strip() for line in text.splitlines() if line.strip()), "")


def _marked(text: str, pattern: str | None) -> list[str]:
    """The possible answers after the last marker in the text; empty without a marker.

    After "answer is" there are two, the sentence and the line, because a full stop may belong to
    the answer ("J. K. Rowling").
    """
    marked: list[tuple[int, int, list[str]]] = []
    if (at := text.rfind("####")) >= 0:
        marked.append((at + 4, 0, [_first_line(text[at + 4 :])]))
    if (at := text.rfind("\\boxed{")) >= 0:
        braced = _BRACED.match(text, at + 7)
        inner = braced[1] if braced else _first_line(text[at + 7 :])
        marked.append((at + 7, 0, [_TEXT_COMMAND.sub(r"\1", inner).strip()]))
    if answer_is := list(_ANSWER_IS.finditer(text)):
        line = _first_line(text[answer_is[-1].end() :])
        sentence = _SENTENCE_END.split(line, 1)[0].strip()
        marked.append((answer_is[-1].end(), 0, [sentence, line]))
    if pattern is not None and (match := last_match(pattern, text)) is not None:
        marked.append((match[0], 1, [match[1].strip()]))
    return max(marked)[2] if marked else []


def compile_pattern(pattern: str) -> regex.Pattern[str]:
    """The compiled pattern. Raises TaskError if it is invalid or too large."""
    try:
        return compiled(pattern)
    except PatternError as error:
        raise TaskError(f"answer_pattern {pattern[:100]!r} {error}.") from None


def _greedy(pattern: str) -> TaskError:
    return TaskError(
        f"answer_pattern {pattern[:100]!r} took longer than {PATTERN_SECONDS:g} s on one answer:",
        "write it without nested repetition.",
    )


def matches(pattern: str, text: str, whole: bool = True) -> bool:
    """Whether a pattern matches the whole text, or with whole=False a part of it.

    Raises TaskError if it is no pattern or takes too long.
    """
    expression = compile_pattern(pattern)
    find = expression.fullmatch if whole else expression.search
    try:
        return find(text, timeout=PATTERN_SECONDS) is not None
    except (TimeoutError, MemoryError):  # `regex` bounds the memory of one match
        raise _greedy(pattern) from None


def last_match(pattern: str, text: str) -> tuple[int, str] | None:
    """Start and text of the answer in the last match: group 1, or the match without groups."""
    expression = compile_pattern(pattern)
    group = 1 if expression.groups else 0
    try:
        matches = list(expression.finditer(text, timeout=PATTERN_SECONDS))
    except (TimeoutError, MemoryError):
        raise _greedy(pattern) from None
    matches = [match for match in matches if match.group(group) is not None]
    return (matches[-1].start(group), matches[-1].group(group)) if matches else None


def contains(text: str, answers: Sequence[str]) -> bool:
    """Whether one of the answers stands in the text as whole words, after `normalize_answer`.

    Of an answer that is a JSON object or list its values have to stand there, in whatever form.
    Letters joined by punctuation are read joined and apart: "Thai/Lao" contains "Lao". A letter of
    a script without spaces is a word. An answer of which nothing but articles is left (the choice
    "A") has to stand there with its case, one of symbols only as it is.
    """
    return any(_holds(text, answer) or _names(text, answer) for answer in answers)


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


def first_lines(text: str, answer: str) -> str:
    """As many lines of the text as the answer has, from the first that is not blank."""
    lines = text.strip("\r\n").split("\n")
    first = next((k for k, line in enumerate(lines) if line.strip()), 0)
    return "\n".join(lines[first : first + answer.strip().count("\n") + 1])


def json_at_start(text: str) -> tuple[Any, str] | None:
    """The JSON value with which a text starts, and its text; None where there is none.

    A fence (```json) before it is skipped. The rest of the value's last line must be blank.
    """
    text = regex.sub(r"^\s*```\w*[^\S\n]*\n", "", text).lstrip()
    try:
        value, end = json.JSONDecoder().raw_decode(text)
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


# ---- metrics ------------------------------------------------------------------------------------


class Judged(NamedTuple):
    """Whether a reply is right, whether a right answer stands in it, and the answer as read."""

    right: bool
    contains: bool
    text: str


class Metric:
    """Judges the replies to a question by its right answers.

    whole: more than the right answer is wrong. patterns: the answers are patterns, not texts.
    reading: how `task sample` says it, where the form of the question does not say it. ended: tells
    of a plain reply, up to the end of a line, whether what follows cannot count; None where it may
    count up to the limit of tokens.
    """

    generated = True  # a reply is written; else given texts are scored
    whole = False
    patterns = False
    reading = ""
    ended: Callable[[str], bool] | None = None

    def check(self, answers: Sequence[str], pattern: str | None) -> None:
        """Raises TaskError for an answer that the metric cannot compare with."""

    def one_line(self, answers: Sequence[str]) -> bool:
        """Whether the first line of a plain reply is all that counts."""
        return True

    def judge(
        self, text: str, answers: Sequence[str], *, cot: bool = False, pattern: str | None = None
    ) -> Judged:
        """What the metric says of a reply. cot: the reply is a worked text.

        Raises TaskError for answers that it cannot use, and for a pattern that takes too long.
        """
        raise NotImplementedError

    def texts(self, choices: tuple[str, ...], answers: tuple[str, ...]) -> tuple[str, ...]:
        """The texts that are scored, where no reply is written."""
        return answers

    def scored(
        self, scores: Sequence[tuple[float, int]], texts: Sequence[str], answers: Sequence[str]
    ) -> tuple[float, str]:
        """The value of a question and the text that was taken.

        scores: log-probability and number of tokens of each text.
        """
        raise NotImplementedError


class ExactMatch(Metric):
    """The same words after `normalize_answer`."""

    whole = True

    def judge(
        self, text: str, answers: Sequence[str], *, cot: bool = False, pattern: str | None = None
    ) -> Judged:
        right = answered(text, answers, cot=cot, pattern=pattern)
        readings = possible_answers(text, cot=cot, pattern=pattern)
        stands = right or any(contains(reading, answers) for reading in readings)
        # without punctuation at its end a plain answer fits into the next hop's prompt
        likeliest = readings[0] if cot else readings[0].rstrip(" .!?,;") or readings[0]
        return Judged(right, stands, likeliest)


class Strict(Metric):
    """The same text but for blanks around it, of as many lines as the answer has."""

    whole = True

    def one_line(self, answers: Sequence[str]) -> bool:
        return not any("\n" in answer.strip() for answer in answers)

    def judge(
        self, text: str, answers: Sequence[str], *, cot: bool = False, pattern: str | None = None
    ) -> Judged:
        readings = [first_lines(text, answer) for answer in answers]
        if cot:
            readings = possible_answers(text, cot=True, pattern=pattern)
        right = any(reading.strip() == answer.strip() for reading in readings for answer in answers)
        stands = right or any(contains(reading, answers) for reading in readings)
        return Judged(right, stands, readings[0].strip())


class Contains(Metric):
    """A right answer stands in the reading as whole words; of JSON, its values."""

    ended = staticmethod(json_ended)  # where more than one line counts

    def one_line(self, answers: Sequence[str]) -> bool:
        return not any(map(is_structure, answers))

    def judge(
        self, text: str, answers: Sequence[str], *, cot: bool = False, pattern: str | None = None
    ) -> Judged:
        readings = possible_answers(text, cot=cot, pattern=pattern)
        begun = None if cot or self.one_line(answers) else json_at_start(text)
        readings = readings if begun is None else [begun[1]]
        stands = any(contains(reading, answers) for reading in readings)
        return Judged(stands, stands, readings[0].strip())


class Regex(Metric):
    """The item's pattern, or an answer as a pattern, matches the whole reading."""

    patterns = True

    def check(self, answers: Sequence[str], pattern: str | None) -> None:
        for answer in answers if pattern is None else ():
            compile_pattern(answer)

    def judge(
        self, text: str, answers: Sequence[str], *, cot: bool = False, pattern: str | None = None
    ) -> Judged:
        patterns = [pattern] if pattern else answers
        readings = [reading.strip() for reading in possible_answers(text, cot=cot)]
        right = any(matches(p, reading) for p in patterns for reading in readings)
        stands = right or any(matches(p, r, whole=False) for p in patterns for r in readings)
        return Judged(right, stands, readings[0])


class Choice(Metric):
    """The choice of the highest log-likelihood per character, as acc_norm of lm-evaluation-harness;
    of equals the first."""

    generated = False
    reading = "the most likely choice is the answer; nothing is written."

    def texts(self, choices: tuple[str, ...], answers: tuple[str, ...]) -> tuple[str, ...]:
        return choices

    def scored(
        self, scores: Sequence[tuple[float, int]], texts: Sequence[str], answers: Sequence[str]
    ) -> tuple[float, str]:
        per_character = [
            logprob / len(text) for (logprob, _), text in zip(scores, texts, strict=True)
        ]
        taken = texts[per_character.index(max(per_character))]
        return float(taken in answers), taken


class AnswerLoss(Metric):
    """Nats per token of the cheapest right answer; less is better."""

    generated = False
    reading = "the loss of the answer is measured; nothing is written."

    def scored(
        self, scores: Sequence[tuple[float, int]], texts: Sequence[str], answers: Sequence[str]
    ) -> tuple[float, str]:
        losses = [-logprob / tokens for logprob, tokens in scores]
        return min(zip(losses, texts, strict=True))


class Numeric(Metric):
    """The last number of the first reading that has one, else of the whole text."""

    def check(self, answers: Sequence[str], pattern: str | None) -> None:
        for answer in answers:
            _gold_number(answer)

    def judge(
        self, text: str, answers: Sequence[str], *, cot: bool = False, pattern: str | None = None
    ) -> Judged:
        readings = possible_answers(text, cot=cot, pattern=pattern)
        golds = [_gold_number(answer) for answer in answers]
        places = [*readings, text if cot else readings[0]]
        numbers = next((numbers for numbers in map(_numbers, places) if numbers), [])
        right = bool(numbers) and any(_equal(numbers[-1][1], gold) for gold in golds)
        stands = any(_equal(value, gold) for _, value in numbers for gold in golds)
        return Judged(right, stands, numbers[-1][0] if numbers else readings[0].strip())


class Json(Metric):
    """The JSON value with which the reply begins."""

    reading = "the JSON value with which the reply begins is compared with it."
    ended = staticmethod(json_ended)

    def check(self, answers: Sequence[str], pattern: str | None) -> None:
        for answer in answers:
            _gold_value(answer)

    def one_line(self, answers: Sequence[str]) -> bool:
        return False

    def judge(
        self, text: str, answers: Sequence[str], *, cot: bool = False, pattern: str | None = None
    ) -> Judged:
        readings = possible_answers(text, cot=cot, pattern=pattern) if cot else [text]
        golds = [_gold_value(answer) for answer in answers]
        for reading in readings:
            value = json_at_start(reading)
            if value is not None and any(_same(value[0], gold) for gold in golds):
                return Judged(True, True, value[1])
        first = json_at_start(readings[0])
        read = first_lines(readings[0], "") if first is None else first[1]
        return Judged(False, contains(read, answers), read.strip())


def _numbers(text: str) -> list[tuple[str, Fraction]]:
    """The numbers of a text as they stand in it, and their values."""
    read = ((match[0], _number(match[0])) for match in _NUMBER.finditer(text))
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


def is_structure(answer: str) -> bool:
    """Whether an answer is a JSON object or list."""
    value = json_at_start(answer)
    return value is not None and isinstance(value[0], dict | list) and value[1] == answer.strip()


def _equal(one: Fraction, other: Fraction) -> bool:
    """Whole numbers must be equal, others up to TOLERANCE of the larger."""
    if one.denominator == other.denominator == 1:
        return one == other
    return abs(one - other) <= Fraction(TOLERANCE) * max(abs(one), abs(other))


def _gold_number(answer: str) -> Fraction:
    numbers = _numbers(answer)
    if len(numbers) != 1:
        raise TaskError(
            f"metric numeric needs one number in each answer, and {answer[:60]!r} has "
            f"{len(numbers)}:",
            "write the number alone, or choose another metric.",
        )
    return numbers[0][1]


def _gold_value(answer: str) -> Any:
    value = json_at_start(answer)
    if value is None or value[1].strip() != answer.strip():
        raise TaskError(
            f"metric json needs JSON in each answer, and {answer[:60]!r} is none:",
            "write it as JSON, or choose another metric.",
        )
    return value[0]


def _same(one: Any, other: Any) -> bool:
    """Whether two JSON values are equal as people read them; true is not 1."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, str) and isinstance(other, str):
        return _as_people_read(one) == _as_people_read(other)
    return bool(one == other)


def _as_people_read(text: str) -> str:
    """A text without blanks around it and without the case of its words' first letters.

    Case inside a word tells things apart ("US" and "us", "CO" and "Co"), and so does every case
    where the text has signs of a formal language ("X_1").
    """
    words = text.split()
    if not _FORMAL & set(text):
        words = [word[:1].lower() + word[1:] for word in words]
    return " ".join(words)


def _names(text: str, answer: str) -> bool:
    """Whether an answer is a JSON object or list of which all values, at least one, stand in a
    text."""
    read = json_at_start(answer) if is_structure(answer) else None
    inside = () if read is None else (value for _, value, _ in nested_values({"": read[0]}))
    values = [str(one) for one in inside if one is not None and not isinstance(one, dict | list)]
    return bool(values) and all(_holds(text, value) for value in values)


METRICS: Mapping[str, Metric] = {
    "answer_loss": AnswerLoss(),
    "choice": Choice(),
    "contains": Contains(),
    "exact_match": ExactMatch(),
    "json": Json(),
    "numeric": Numeric(),
    "regex": Regex(),
    "strict": Strict(),
}

ITEM_METRICS = [name for name in METRICS if name != LOSS]  # a loss is for all tasks at once
_EXACT = "exact_match, or choice where the items have choices?"
ELSEWHERE = {  # names that other tools have for metrics
    "acc": _EXACT,
    "accuracy": _EXACT,
    "acc_norm": "choice?",
    "em": "exact_match?",
    "loss": "answer_loss?",
    "perplexity": "answer_loss?",
}


def is_generated(metric: str) -> bool:
    """Whether a score's metric, or one of several joined by "+", judges written replies.

    Those of an `Examiner` are not in METRICS, because it judges by itself.
    """
    return any(m is not None and m.generated for m in map(METRICS.get, metric.split("+")))


# ---- which metric judges an item ---------------------------------------------------------------


def given_metric(task: str, metric: str | None) -> str | None:
    """What `--metric` gives for a task; None where its gold answers choose (AUTO)."""
    for_all, by_task = named_metrics(metric)
    given = by_task.get(task, for_all)
    return None if given == AUTO else given


def named_metrics(metric: str | None) -> tuple[str | None, dict[str, str]]:
    """The metric for all tasks, and those of single tasks, from "json" or "a=json,b=strict".

    Tasks with an `Examiner` have metrics of their own, so names are not checked here. Raises
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
    if LOSS in by_task.values() or (for_all == LOSS and by_task):
        raise UsageError("--metric=answer_loss is for all tasks at once:", "give no other metric.")
    return for_all, by_task


def with_metrics(tasks: Sequence[Task], metric: str | None) -> list[Task]:
    """The tasks whose items all say how they are judged. metric: the text of `--metric`.

    A task that has its metric already is returned as it is. Raises UsageError for an unknown metric
    or one of no task, TaskError for answers that a metric cannot use.
    """
    for_all, by_task = named_metrics(metric)
    if for_all not in (None, AUTO, *METRICS) and not any(task.examiner for task in tasks):
        raise UsageError(f"Unknown metric {for_all!r}:", _nearest_metric(for_all or "", METRICS))
    names = [task.name for task in tasks]
    for name in by_task:
        if name not in names:
            raise UsageError(f"--metric names the task {name!r}:", nearest(name, names))
    return [_with_metric(task, given_metric(task.name, metric)) for task in tasks]


def _nearest_metric(name: str, known: Collection[str]) -> str:
    """The end of a message about an unknown metric."""
    meant = ELSEWHERE.get(name.lower())
    return f"did you mean {meant}" if meant else nearest(name, known)


def judged_by(task: Task, metric: str) -> Task:
    """The task with all items judged by one metric."""
    return replace(task, items=tuple(replace(item, metric=metric) for item in task.items))


def _with_metric(task: Task, given: str | None) -> Task:
    if task.metric:
        return task
    needs, why = auto_metric(task)
    items = []
    for item in task.items:
        chosen = _metric_of(item, task.name, given, needs)
        if chosen in METRICS:  # an examiner judges by others
            try:
                METRICS[chosen].check(item.answers, item.answer_pattern)
            except TaskError as error:
                raise error.at(f"Task {task.name}, item {item.id!r}") from None
        items.append(replace(item, metric=chosen))
    metric = "+".join(sorted({item.judge for item in items}))
    items, repeated = of_one_question(items)
    known = replace(task, metric=metric, needs=needs, why=why)
    return replace(known, items=tuple(items), repeated=repeated)


def _metric_of(item: Item, task: str, given: str | None, needs: str) -> str:
    """The metric of an item. given: that of its task; needs: what the gold answers need."""
    if item.metric is not None and (item.examiner is not None or not item.prompt):
        return item.metric
    if given == LOSS:
        return LOSS
    chosen = item.metric or given or ("choice" if item.choices else needs)
    if chosen not in ITEM_METRICS:
        raise UsageError(
            f"Unknown metric {chosen!r} of item {item.id!r} of task {task}:",
            _nearest_metric(chosen, ITEM_METRICS),
        )
    if chosen == "choice" and not item.choices:
        raise UsageError(
            f"Metric choice needs choices, and item {item.id!r} of task {task} has none; "
            "add them, or leave --metric=choice out."
        )
    return chosen


def auto_metric(task: Task) -> tuple[str, str]:
    """The metric that the gold answers of a task need, and why; "" where exact match drops nothing.

    Items with choices or another metric of their own do not count. `json` if all answers are JSON
    objects or lists; `numeric` if all are numbers; `strict` if exact match drops what more than
    SPOILED of the items need: signs of a formal language, such as "C#", or what an answer differs
    by from a commoner one of the same words.
    """
    items = [
        item
        for item in task.items
        if item.metric in (None, "exact_match") and not (item.choices or item.examiner)
    ]
    every = [answer for item in items for answer in item.answers]
    if every and all(map(is_structure, every)):
        return "json", "all gold answers are JSON objects or lists"
    if every and all(_AMOUNT.fullmatch(a.strip()) and len(_numbers(a)) == 1 for a in every):
        return "numeric", "all gold answers are numbers"
    lost, example = _lost([item.answers[0].strip() for item in items])
    why = f"exact_match drops what matters in {lost:,} of {len(items):,} gold answers ({example})"
    return "strict" if lost > SPOILED * len(items) else "exact_match", why if lost else ""


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
