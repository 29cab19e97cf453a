"""The math world: its problems against an oracle of their words, programs, splits, a tiny build."""

import random
import re

import pytest

from loraprobe.tasks import answered
from loraprobe_lab.worlds import math

SYMBOLS = {"plus": "+", "minus": "-"}
VERBS = (("glims", ("plus", 3)), ("vorps", ("minus", 1)))


def oracle(question, meaning):
    """The field that a problem leads to, read from its words, by Python's own arithmetic."""
    field = re.match(r"\w+ stands on (\d)\.", question).group(1)
    for verb in re.findall(r"\. \w+ (\w+)(?=\.)", question):
        operation, number = meaning[verb]
        field = f"({field} {SYMBOLS[operation]} {number})"
    return eval(field) % 10


def value(program):
    """The result of a program by Python's arithmetic modulo ten."""
    operations = {"plus": lambda a, b: (a + b) % 10, "minus": lambda a, b: (a - b) % 10}
    return eval(program, {"__builtins__": {}}, operations)


def drawn(count=300):
    rng = random.Random(3)
    verbs = [*math.FAMILIAR, *VERBS]
    return [math.draw_problem(rng, rng.choices(verbs, k=rng.choice((1, 2)))) for _ in range(count)]


# problems


def test_answers_are_those_of_an_oracle_that_reads_the_words():
    for problem in drawn():
        assert problem.answer == oracle(problem.question(), dict([*math.FAMILIAR, *VERBS]))
        assert answered(problem.worked(), [str(problem.answer)], cot=True)
        assert {value(way) for way in problem.programs()} == {problem.answer}


def test_worked_steps_are_true_and_lead_from_one_to_the_next():
    for problem in drawn():
        steps, _, end = problem.worked().partition(".")
        field, *rest = steps.split()
        assert field == str(problem.start) and len(rest) == 4 * len(problem.verbs)
        for i in range(0, len(rest), 4):
            operation, number, word, after = rest[i : i + 4]
            assert word == "is"
            assert eval(f"{field} {SYMBOLS[operation]} {number}") % 10 == int(after)
            field = after
        assert end == f" The answer is {field}."


def test_another_reading_of_one_verb_leads_to_another_field():
    for problem in drawn():
        for i in range(len(problem.verbs)):
            for move in math.MOVES:
                verbs = list(problem.verbs)
                verbs[i] = ("another", move)
                other = math.Problem(problem.name, problem.start, tuple(verbs))
                assert (other.answer == problem.answer) == (move == problem.verbs[i][1])
            without = math.Problem(
                problem.name, problem.start, (*problem.verbs[:i], *problem.verbs[i + 1 :])
            )
            assert not without.verbs or without.answer != problem.answer


# what adapters and bases see


@pytest.mark.parametrize("template", ["worked", "program", "at-once"])
@pytest.mark.parametrize("part", ["whole", "first", "second"])
def test_an_adapter_sees_its_own_new_verbs_only_and_no_wrong_answer(template, part):
    if part != "whole" and template != "worked":
        return
    meaning = dict([*math.FAMILIAR, *VERBS])
    for example in math.VerbSkill(VERBS[:1], template, part).examples(400, 0):
        assert "vorps" not in example.prompt
        question = example.prompt.split(" Where now?")[0]
        right = oracle(question, meaning)
        if example.prompt.endswith("?"):
            assert example.completion == f" {right}"
        elif math.AS_PROGRAM in example.prompt:
            assert value(example.completion) == right
        elif part == "first":
            assert not example.end and example.completion.count(" is ") == 1
        else:
            assert example.prompt.count(math.SHOW_STEPS) == 1
            assert example.completion.endswith(f"The answer is {right}.")


@pytest.mark.parametrize("placed", [False, True])
def test_the_base_meets_new_verbs_without_meaning_and_no_worked_word_problem(placed):
    corpus, new, met = math.ProblemsCorpus(0, 0, placed), set(math.new_verbs(0)), set()
    for example in (corpus.draw() for _ in range(6000)):
        words = set(re.findall(r"\w+", example.prompt))
        met |= words
        if " stands on " in example.prompt:
            assert not new & words
            assert re.fullmatch(r" \d|( \d| plus| minus)+\.", example.completion)
        else:
            assert not re.search(r"\d", example.prompt.partition("Work out")[0])
    assert met >= new


def test_items_fit_their_hops_and_are_all_different():
    (one, two), meaning = ((verb,) for verb in VERBS), dict(VERBS)
    items = math.target_items(("a", "b"), (one, two), template="worked", count=200, seed=0)
    assert len({item["prompt"] for item in items}) == 200
    for item in items:
        first, second = item["hops"]
        assert "glims" in first["prompt"] and "vorps" in second["prompt"]
        assert (first["adapter"], second["adapter"]) == ("a", "b")
        assert str(oracle(item["prompt"], meaning)) == item["answer"] == second["answer"]
        assert str(oracle(first["prompt"], meaning)) == first["answer"]
        assert item["answer"] != re.search(r"\d", item["prompt"]).group()
        filled = second["prompt"].replace("{1}", first["answer"])
        assert str(oracle(filled, meaning)) == second["answer"]
        assert item["cot_prompt"] == item["prompt"] + math.SHOW_STEPS


def test_a_program_is_read_by_the_items_own_pattern():
    (one, two) = ((verb,) for verb in VERBS)
    item, *_ = math.target_items(("a", "b"), (one, two), template="program", count=3, seed=0)
    answer, *ways = item["answer"]
    for way in ways:
        assert answered(" " + way, item["answer"], cot=True, pattern=item["answer_pattern"])
    wrong = f" plus( 0, {answer})"  # ends with the right number and is not the program
    assert not answered(wrong, item["answer"], cot=True, pattern=item["answer_pattern"])
    assert str(value(ways[0])) == answer
