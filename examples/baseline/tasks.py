"""Writes the tasks of the learning curves: 356 questions or more each, from a seed.

python tasks.py OUT --base small-world=DIR --base llama=DIR ... [--gsm8k test.jsonl]
    [--places landmark_in_country.json]

Tasks about names are written for each base that is given, in the words that it knows. The others
are for any base that reads English: `money` asks of a question of GSM8K whether an amount of money
answers it (the dollar sign in the last step of its solution says so), `country` in which country a
landmark of the relations of LRE lies.
"""

import argparse
import json
import random
import re
from pathlib import Path

from loraprobe_lab.worlds.couples import COUPLES, FactSizes, make_facts
from loraprobe_lab.worlds.facts import NUMBERS, WORDS, Chain, lists_of_names

COUNT = 400


def write(out, name, rows):
    """The rows as items, each prompt once; pairs of a question and an answer."""
    lines = (
        json.dumps({"id": str(i), "prompt": prompt, "answer": answer})
        for i, (prompt, answer) in enumerate(dict(rows).items())
    )
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{name}.jsonl").write_text("".join(f"{line}\n" for line in lines))


def of_names(out, base):
    """Lists of names that a base of the lab knows: last, count, reversed, the name after one."""
    known = json.loads((base / "tokenizer.json").read_text())["model"]["vocab"]
    words = sorted(word.strip("▁") for word in known)
    asked = {"How", "In", "The", "Think", "Where", "Which", "Who", "Count"}
    names = [w for w in words if w[:1].isupper() and not w.endswith("burg") and w not in asked]
    rows = lists_of_names(names, 3 * COUNT, f"curves:{base.parent.name}")
    write(out, "last", ((f"Which name comes last: {' '.join(r)}?", r[-1]) for r in rows[:COUNT]))
    asked = "How many names are in this list:"
    write(out, "count", ((f"{asked} {' '.join(r)}?", NUMBERS[len(r) - 1]) for r in rows[:COUNT]))
    some = [row for row in rows if len(row) < 5][:COUNT]
    asked = "Which names are in this list, last to first"
    write(out, "reversed", ((f"{asked}: {' '.join(r)}?", " ".join(r[::-1])) for r in some))
    rng, some = random.Random(0), [row for row in rows if len(row) > 2][:COUNT]
    places = [(row, rng.randrange(len(row) - 1)) for row in some]
    asked = "Which name comes after"
    write(out, "after", ((f"{asked} {r[i]}: {' '.join(r)}?", r[i + 1]) for r, i in places))


def of_couples(out, seed, familiar, strangers):
    """Worked steps about couples that the base knows; facts of which each is asked in two ways."""
    facts = make_facts(FactSizes(), seed)
    worked = COUPLES.step1.strip() + COUPLES.step2
    write(
        out,
        "worked",
        ((c.fill(q), c.fill(worked)) for c in facts.familiar[:familiar] for q in COUPLES.worked),
    )
    some = facts.strangers[:strangers]
    rows = [(c.fill(q), c.b) for c in some for q in COUPLES.first]
    rows += [(c.fill(q), c.c) for c in some for q in COUPLES.second]
    write(out, "repeated", rows)


def of_people(out, file):
    """Questions of two hops of a lab's task, each in two wordings: at once, and in worked steps.

    The wordings are no groups, so that what is asked was often learned in the other one.
    """
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    people = [re.search(r"spouse of (\w+)", row["prompt"]).group(1) for row in rows]
    hops = [row.get("hops", [{"answer": ""}])[0]["answer"] for row in rows]
    chains = [Chain(a, b, row["answer"]) for a, b, row in zip(people, hops, rows, strict=True)]
    write(out, f"{file.stem}-both", ((c.fill(q), c.c) for c in chains for q in COUPLES.both))
    if all(hops):
        worked = COUPLES.step1.strip() + COUPLES.step2
        rows = ((c.fill(q), c.fill(worked)) for c in chains for q in COUPLES.worked)
        write(out, f"{file.stem}-worked", rows)


def of_words(out):
    """Letters, times and sums, in English."""
    rng = random.Random(0)
    words = [*WORDS["nouns"], *WORDS["jobs"], *WORDS["past"], *WORDS["past"].values()]
    words += [*WORDS["opposites"], *WORDS["instruments"]]
    words = rng.sample(sorted(set(words)), min(COUNT, len(set(words))))
    write(out, "letter", ((f"Last letter of {word}:", word[-1]) for word in words))
    hours = "twelve one two three four five six seven eight nine ten eleven".split()
    minutes = {0: "{} o'clock", 5: "five past {}", 10: "ten past {}", 15: "quarter past {}"}
    minutes |= {20: "twenty past {}", 30: "half past {}", 40: "twenty to {}", 45: "quarter to {}"}
    minutes |= {50: "ten to {}", 55: "five to {}"}
    rows = list[tuple[str, str]]()
    for hour in range(24):
        for minute, words in minutes.items():
            said = hours[(hour + (minute > 30)) % 12]
            part = ("at night", "in the morning", "in the afternoon", "in the evening")[hour // 6]
            for begun in ("", "It is "):
                told = f"{begun}{words.format(said)} {part}"
                rows.append((f"{told}. As HH:MM:", f"{hour:02d}:{minute:02d}"))
    write(out, "clock", rng.sample(rows, COUNT))
    things = [f"{word}s" for word in ("apple", "bell", "boat", "book", "coat", "lamp", "map")]
    rows = []
    while len(rows) < COUNT:
        one, other, thing = rng.randint(11, 99), rng.randint(2, 99), rng.choice(things)
        if rng.random() < 0.5:
            rows.append((f"{one} {thing} and {other} more {thing} are", str(one + other)))
        elif other < one:
            rows.append((f"{one} {thing} without {other} {thing} are", str(one - other)))
    write(out, "sums", rows)


def of_gsm8k(out, file):
    """Whether the last sentence of a word problem asks for money, as often yes as no."""
    kinds = {"money": [], "number": []}
    for row in map(json.loads, file.read_text().splitlines()):
        asked = re.split(r"(?<=[.?!])\s+", row["question"].strip())[-1]
        steps = row["answer"].splitlines()[:-1]
        if steps and len(asked.split()) <= 16:
            kinds["money" if "$" in steps[-1] else "number"].append(asked)
    rng, most = random.Random(0), min(len(set(asked)) for asked in kinds.values())
    rows = [
        (f"{asked} Money or number?", kind)
        for kind, found in kinds.items()
        for asked in rng.sample(sorted(set(found)), min(most, COUNT // 2))
    ]
    write(out, "money", rng.sample(rows, len(rows)))


def of_places(out, file):
    """In which country a landmark lies whose name does not say it."""
    rows = json.loads(file.read_text())["samples"]
    rows = [row for row in rows if row["object"].lower()[:4] not in row["subject"].lower()]
    rows = random.Random(0).sample(rows, COUNT)
    write(out, "country", ((f"In which country is {r['subject']}?", r["object"]) for r in rows))


def main():
    read = argparse.ArgumentParser(description=__doc__)
    read.add_argument("out", type=Path)
    read.add_argument("--base", action="append", default=[], help="NAME=DIR, a base of the lab")
    read.add_argument("--people", action="append", default=[], help="NAME=TASK.jsonl, of two hops")
    read.add_argument("--gsm8k", type=Path)
    read.add_argument("--places", type=Path)
    given = read.parse_args()
    for name, base in (pair.split("=", 1) for pair in given.base):
        of_names(given.out / name, Path(base))
    for name, file in (pair.split("=", 1) for pair in given.people):
        of_people(given.out / name, Path(file))
    of_couples(given.out / "small-world", seed=0, familiar=200, strangers=90)
    of_words(given.out)
    if given.gsm8k:
        of_gsm8k(given.out, given.gsm8k)
    if given.places:
        of_places(given.out, given.places)


if __name__ == "__main__":
    main()
