r"""How the answer in a generated text is read, and whether it is one of the right ones.

The answer to a plain prompt is the first line of the continuation. The answer of a worked text
follows the last of ``####``, ``\boxed{}``, "answer is" or the item's own pattern. A text without
any of these must end with the answer.
"""

from __future__ import annotations

import string
import unicodedata
from collections.abc import Sequence

import regex

from loraprobe.errors import TaskError
from loraprobe.patterns import PatternError, compiled

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
_WORD = regex.compile(r"\w+")
_BETWEEN_LETTERS = regex.compile(r"(?<=\p{L})\p{P}+(?=\p{L})")
# Letters of scripts that are written without spaces count as words of their own.
_UNSPACED = regex.compile(r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]")


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
    ends = [match.end() for name in marks if (match := _ANSWER_LINE[name].search(text))]
    return min(ends, default=None)


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
        f"answer_pattern {pattern[:100]!r} took longer than {PATTERN_SECONDS:g} s on one answer: "
        "write it without nested repetition."
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


def first_lines(text: str, answer: str) -> str:
    """As many lines of the text as the answer has, from the first that is not blank."""
    lines = text.strip("\r\n").split("\n")
    first = next((k for k, line in enumerate(lines) if line.strip()), 0)
    return "\n".join(lines[first : first + answer.strip().count("\n") + 1])
