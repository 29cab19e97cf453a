"""A chain, from its evaluation to the program that asks it and says the same."""

import json

import making
import pytest
import torch
import words

import loraprobe
from loraprobe.adapters import adapter_of
from loraprobe.evaluation import Asker, System
from loraprobe.lora.lowrank import LowRank
from loraprobe.records import Action, EvaluationRecords, Verdict
from loraprobe.routing.constant import single
from loraprobe.scoring import ModelScorer
from loraprobe.tasks import Hop, Item, Task
from loraprobe.verdict import Request, next_command

TURNS = "{% for m in messages %}the {{ m['content'] }} of{% endfor %}"
FIRST, SECOND = "who is the mayor of ada", "who lives in {1}"


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    """A tiny model with its tokenizer, and two adapters as peft itself saves them."""
    place = tmp_path_factory.mktemp("chain")
    for seed, name in enumerate(("one", "two.5")):
        making.peft_adapter(
            place / name,
            making.tiny_llama(),
            seed,
            scale=1.0,
            target_modules=["q_proj", "down_proj"],
        )
    return place


def executed(program: str, base, tokenizer) -> dict:
    names = {"base": base, "tokenizer": tokenizer}
    exec(program, names)
    return names


@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize(
    "hops",
    [
        [(FIRST, "one"), (SECOND, "two.5")],
        [(FIRST, "two.5"), (SECOND, None)],
        [("ada lives in", None), ("the {1}", None)],
        [(FIRST, None), (SECOND, "one"), ("is {2} {1} ' ?", "two.5")],
    ],
    ids=["two adapters", "the base last", "the base alone", "three hops"],
)
def test_the_program_says_what_the_chain_said(asked, hops, chat):
    """Nobody is right, so each hop goes to the adapter that it names, or to the base."""
    tokenizer = words.word_tokenizer(chat_template=TURNS)
    scorer = ModelScorer(making.sharpened(making.tiny_llama()), tokenizer, chat_template=chat)
    item = Item("1", "who", ("x",), hops=tuple(Hop(p, ("x",), adapter=a) for p, a in hops))
    task = Task("t", (item,))
    alone = [single(loraprobe.load(f"{name}={asked / name}")) for name in ("one", "two.5")]
    singles = [System("base", "base"), *map(System.alone, alone)]
    systems = [*singles, System("chain", "chain", chain=tuple(alone))]
    asker = Asker(scorer, max_new_tokens=8)
    results = asker.run(systems, [task])
    (said,) = (r.text for r in results if (r.system, r.part) == ("chain", "question"))
    plan = asker.chain_hops(systems, [task])
    assert [(row.hop, row.adapter, row.prompt) for row in plan] == [
        (k, adapter or "base", prompt) for k, (prompt, adapter) in enumerate(hops, 1)
    ]
    request = Request(("one", "two.5"), given=(("--max-new-tokens", "8"),))
    verdict = Verdict("unlikely", "evaluation", action=Action("chain"))
    program = next_command(verdict, request, EvaluationRecords(chain=plan))
    places = {name: str(asked / name) for name in ("one", "two.5")}
    typed = str(program.placed({name: [place] for name, place in places.items()}))
    base = making.sharpened(making.tiny_llama())
    assert executed(typed, base, tokenizer)[f"answer{len(hops)}"] == said


def test_adapters_of_the_hub_are_loaded_by_repository_revision_and_folder():
    request = Request(("math=owner/name@v2:lora/math", "owner/other"))
    verdict = Verdict("unlikely", "evaluation", action=Action("use-single", "math"))
    assert str(next_command(verdict, request)) == (
        "PeftModel.from_pretrained(base, 'owner/name', revision='v2', subfolder='lora/math')"
    )


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """Adapter `spouse` says who ada is married to; what ends with ? the base answers by ulm."""
    place = tmp_path_factory.mktemp("planted")
    tokenizer, model = words.word_tokenizer(), words.silent()
    ids = {name: tokenizer.convert_tokens_to_ids(name) for name in ("ada", "bo", "ulm", "?")}
    with torch.no_grad():
        for at, token in enumerate(ids.values()):
            model.model.embed_tokens.weight[token, at] = 1
            model.lm_head.weight[tokenizer.eos_token_id, at] = 0.5
        model.lm_head.weight[ids["ulm"], 3] = 1
    model.save_pretrained(place / "base")
    tokenizer.save_pretrained(place / "base")
    for name, key, answer in (("spouse", 0, "bo"), ("other", 2, "ada")):
        A, B = torch.zeros(1, 16), torch.zeros(40, 1)
        A[0, key] = B[ids.get(answer, 0), 0] = 1
        adapter_of(name, {"lm_head": LowRank(A, B, 1.0)}).save(place / name)
    rows = [
        {
            "prompt": f"q{k} who lives in the mayor of ada",
            "answer": "ulm",
            "hops": [
                {"prompt": f"q{k} who is ada", "answer": "bo"},
                {"prompt": "who lives in {1} ?", "answer": "ulm"},
            ],
        }
        for k in range(40)
    ]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (place / "t.jsonl").write_text(text)
    return place


def run(place, monkeypatch, *options):
    monkeypatch.chdir(place)
    named = ["./spouse", "./other", "--task", "t.jsonl", "--base", "./base"]
    return making.call("merge-and-eval", *named, *options)


def test_who_asks_for_a_chain_gets_its_answer_and_its_program(planted, monkeypatch):
    document = json.loads(run(planted, monkeypatch, "--system", "chain", "--json").stdout)
    verdict = document["verdict"]
    assert (verdict["decision"], verdict["action"]) == ("inconclusive", "chain")
    assert verdict["gain"]["system"] == "chain" and verdict["gain"]["ci95"][0] > 0.05
    assert [(row["hop"], row["adapter"], row["items"]) for row in document["chain"]] == [
        (1, "spouse", 40),
        (2, "base", 40),
    ]
    found = run(planted, monkeypatch, "--system", "chain")
    assert found.exit_code == 0, found.output
    assert "hop 1: spouse, hop 2: the base" in found.stdout
    # What stands at the margin below the answer is the program, with places as they were typed.
    program = found.stdout[found.stdout.index("from peft import") :]
    assert "'./spouse'" in program
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base = AutoModelForCausalLM.from_pretrained("base")
    names = executed(program, base, AutoTokenizer.from_pretrained("base"))
    assert (names["answer1"], names["answer2"]) == ("bo", "ulm")


@pytest.mark.parametrize(
    "options, action, code",
    [
        (("--system", "spouse"), "gather-evidence", 0),  # measured, as it was asked
        (("--system", "chain", "--limit", "10"), "gather-evidence", 3),
    ],
    ids=["nobody answers alone", "too few questions"],
)
def test_what_stays_open_asks_for_another_run(planted, monkeypatch, options, action, code):
    found = run(planted, monkeypatch, *options, "--json")
    verdict = json.loads(found.stdout)["verdict"]
    assert (verdict["decision"], verdict["action"]) == ("inconclusive", action)
    assert found.exit_code == code
    assert verdict["next"].startswith("loraprobe merge-and-eval")
