"""Probes that watch base and single adapters, each against its definition done the long way."""

from __future__ import annotations

import dataclasses
import math

import making
import pytest
import torch
from composing import experts
from words import word_tokenizer

from loraprobe.composition import Composition
from loraprobe.coverage import PROBES, CoverageProbe, cover
from loraprobe.coverage._contract import Study
from loraprobe.coverage._names import MadeUpNames
from loraprobe.records import ItemResult
from loraprobe.routing.arrow import Arrow
from loraprobe.routing.constant import ConstantGates
from loraprobe.scoring import Scorer
from loraprobe.tasks import Hop, Item, Task, answered

WATCHING = [n for n in PROBES.names() if PROBES.get(n).measure is not CoverageProbe.measure]
SUBJECTS = ("ada", "bo", "cy", "ulm", "the mayor", "who", "mayor of ulm")


def single(adapter):
    return Composition(adapter.name, (adapter,), ConstantGates.ones(1))


@pytest.fixture(scope="module")
def scorer():
    model = making.tiny_llama()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)
    return Scorer(model, word_tokenizer(), batch_size=4)


@pytest.fixture(scope="module")
def pair():
    first, second = experts(2, scaling=0.15)
    lacking = {p: second.modules[p] for p in list(second.modules)[:-3]}
    return first, making.adapter_of("e1", lacking)


def composed_says(scorer, composition, prompts, **rest):
    with scorer.with_composition(composition):
        return scorer.generate(prompts, **rest)


def at_gates(adapters, *gates):
    return Composition("gates", adapters, ConstantGates(gates))


def added_line(scorer, adapters, prompt, gate, tokens=6):
    """The first tokens of what the adapters' added effects write, without caches or batches."""
    ids, new = scorer.encoder.prompts([prompt])[0], []
    while len(new) < tokens:
        z = []
        for gates in [(0.0, 0.0), (gate, 0.0), (0.0, gate)]:
            with torch.no_grad(), scorer.with_composition(at_gates(adapters, *gates)):
                z.append(scorer.model(torch.tensor([ids + new])).logits[0, -1].double())
        token = int((z[1] + z[2] - z[0]).argmax())
        if token in scorer.stops:
            break
        new.append(token)
    return scorer.decode(new)


@pytest.fixture(scope="module")
def task(scorer, pair):
    """Half of the items are answered as the added effects at gate 1/2 answer them."""
    items = []
    for i, who in enumerate(SUBJECTS):
        prompt, cot = f"{who} lives in", f"where is {who} ?"
        right = added_line(scorer, pair, prompt, 0.5) if i % 2 else "nowhere"
        last = added_line(scorer, pair, cot, 1.0).split()
        items.append(
            Item(str(i), prompt, (right, last[-1] if last and i % 3 else "no"),
                 hops=(Hop(f"{who} is", (composed_says(scorer, at_gates(pair, 0.5, 0.0),
                                                       [f"{who} is"], max_new_tokens=6)[0],)),),
                 cot_prompt=cot)
        )  # fmt: skip
    return Task("t", tuple(items))


def rows_of(scorer, adapters, tasks, probes=None, results=None, router=None, **rest):
    return cover(scorer, adapters, [tasks] if isinstance(tasks, Task) else tasks, single=single,
                 probes=probes or WATCHING, results=results, router=router, max_new_tokens=6,
                 **rest)  # fmt: skip


def measured(task, systems=("base", "e0", "e1"), value=0.0, **values):
    """Results of everybody on every part, so that only probes run the model."""
    return [
        ItemResult(s, task.name, part, i.id, "exact_match", values.get(f"{s}_{part}", value), "?",
                   f"item:{i.id}")
        for s in systems for i in task.items for part in task.parts
    ]  # fmt: skip


def one(rows, **wanted):
    found = [r for r in rows if all(getattr(r, k) == v for k, v in wanted.items())]
    assert len(found) == 1, found
    return found[0]


def share(hits):
    return sum(hits) / len(hits)


def test_additive_score_is_that_of_the_texts_of_added_effects(scorer, pair, task):
    rows = rows_of(scorer, pair, task, ["additive_score"], measured(task, e1_target=1.0))
    assert {(r.part, r.gate) for r in rows} == {(p, g) for p in ("target", "cot")
                                                for g in (0.5, 1.0)}  # fmt: skip
    for gate in (0.5, 1.0):
        said = [added_line(scorer, pair, item.prompt, gate) for item in task.items]
        hits = [answered(t, i.answers) for t, i in zip(said, task.items, strict=True)]
        row = one(rows, part="target", gate=gate)
        assert row.value == share(hits) and row.n == len(SUBJECTS)
        assert row.adapters == ("e0", "e1") and row.ci95[0] <= row.value + 1e-9
        assert row.baseline == 1.0  # the best of base and singles on these items
        said = [added_line(scorer, pair, item.cot_prompt, gate) for item in task.items]
        hits = [answered(t, i.answers, cot=True) for t, i in zip(said, task.items, strict=True)]
        assert one(rows, part="cot", gate=gate).value == share(hits)
        assert one(rows, part="cot", gate=gate).baseline == 0.0
    values = [r.value for r in rows]
    assert 0 < max(values) < 1 and len(set(values)) > 1


def test_an_adapter_without_effect_adds_nothing(scorer, pair, task):
    """With one of two adapters empty, the added effects at gate 1 are the other adapter alone."""
    silent = making.adapter_of("e1", {p: u.scaled(0.0) for p, u in pair[0].modules.items()})
    rows = rows_of(scorer, (pair[0], silent), task,
                   ["additive_score", "own_answer_kept", "effect_overlap"],
                   measured(task))  # fmt: skip
    said = composed_says(scorer, single(pair[0]), [i.prompt for i in task.items],
                         max_new_tokens=6)  # fmt: skip
    right = share([answered(s, i.answers) for s, i in zip(said, task.items, strict=True)])
    assert one(rows, name="additive_score", part="target", gate=1.0).value == right
    kept = {r.adapters: r for r in rows if (r.name, r.part, r.gate) == ("own_answer_kept", "target",
                                                                        1.0)}  # fmt: skip
    assert kept["e0",].value == 1.0
    assert kept["e1",].value == kept["e1",].baseline < 1.0  # the silent one says what the base says
    assert one(rows, name="effect_overlap", part="target", gate=1.0).value == 0.0


def test_twins_speak_to_the_same_tokens(scorer, pair, task):
    twin = pair[0].renamed("e1")
    rows = rows_of(scorer, (pair[0], twin), task, ["effect_overlap"], measured(task))
    assert [r.value for r in rows] == pytest.approx([1.0] * 4, abs=1e-5)
    # So small that the network is linear in them: opposite updates have opposite effects.
    faint = [
        making.adapter_of(f"e{k}", {p: u.scaled(sign * 1e-3) for p, u in pair[0].modules.items()})
        for k, sign in enumerate((1, -1))
    ]
    rows = rows_of(scorer, faint, task, ["effect_overlap"], measured(task))
    assert max(r.value for r in rows) < -0.9


def test_shrunk_score_is_that_of_each_adapter_at_one_over_n(scorer, pair, task):
    rows = rows_of(scorer, pair, task, ["shrunk_score"], measured(task, e0_hop1=1.0))
    assert len(rows) == 2 * 3 and {r.gate for r in rows} == {0.5}
    for k, gates in enumerate([(0.5, 0.0), (0.0, 0.5)]):
        said = composed_says(scorer, at_gates(pair, *gates), [i.hops[0].prompt for i in task.items],
                             max_new_tokens=6)  # fmt: skip
        right = share([bool(s.strip()) and s.split() == i.hops[0].answers[0].split()
                       for s, i in zip(said, task.items, strict=True)])  # fmt: skip
        row = one(rows, part="hop1", adapters=(f"e{k}",))
        assert (row.value, row.hop, row.baseline) == (right, 1, float(k == 0))
    assert one(rows, part="hop1", adapters=("e0",)).value > 0.5


def test_choices_are_taken_by_added_logits(scorer, pair):
    choices = ("bo", "ulm . who", "cy is")
    items = tuple(Item(str(i), f"{who} lives in", (choices[i % 3],), choices=choices)
                  for i, who in enumerate(SUBJECTS))  # fmt: skip
    task = Task("c", items)
    known = [dataclasses.replace(r, metric="choice") for r in measured(task)]
    rows = rows_of(scorer, pair, task, ["additive_score", "shrunk_score", "own_answer_kept"], known)
    assert "own_answer_kept" not in {r.name for r in rows}  # nothing is decoded
    taken = []
    for item in items:
        scores = []
        for choice in choices:
            ids, start = scorer.encoder.pairs([(item.prompt, choice)])[0]
            z = []
            for gates in [(0.0, 0.0), (1.0, 0.0), (0.0, 1.0)]:
                with torch.no_grad(), scorer.with_composition(at_gates(pair, *gates)):
                    z.append(scorer.model(torch.tensor([ids])).logits[0].double())
            logp = (z[1] + z[2] - z[0]).log_softmax(-1)
            total = sum(float(logp[t - 1, ids[t]]) for t in range(start, len(ids)))
            scores.append(total / len(choice))
        taken.append(choices[scores.index(max(scores))])
    right = share([c in i.answers for c, i in zip(taken, items, strict=True)])
    assert one(rows, name="additive_score", gate=1.0).value == right
    with scorer.with_composition(at_gates(pair, 0.0, 0.5)):
        likely = scorer.loglikelihood([(i.prompt, c) for i in items for c in choices])
    each = [[x.per_character for x in likely[3 * k : 3 * k + 3]] for k in range(len(items))]
    right = share([choices[s.index(max(s))] in i.answers
                   for s, i in zip(each, items, strict=True)])  # fmt: skip
    assert one(rows, name="shrunk_score", adapters=("e1",)).value == right
    asked_in_words = rows_of(scorer, pair, task, ["additive_score"], measured(task))
    assert len(asked_in_words) == 2  # --metric exact_match: the same items, answered in words


def test_losses_and_lone_adapters_give_no_rows(scorer, pair, task):
    losses = [dataclasses.replace(r, metric="answer_loss") for r in measured(task)
              if r.part != "cot"]  # fmt: skip
    scores = ["additive_score", "routed_score", "shrunk_score", "own_answer_kept", "template_loss"]
    assert rows_of(scorer, pair, task, scores, losses, Arrow()) == ()
    alone = rows_of(scorer, pair[:1], task, results=measured(task, ("base", "e0")), router=Arrow())
    assert alone == ()


def hidden_inputs(scorer, paths, rows):
    """path -> every token's input (but each row's first) and output, of the base alone."""
    found: dict = {path: ([], []) for path in paths}

    def keep(path):
        def see(_, args, output):
            found[path][0].append(args[0][0, 1:])
            found[path][1].append(output[0, 1:])

        return see

    for ids in rows:
        hooks = [scorer.model.get_submodule(p).register_forward_hook(keep(p)) for p in paths]
        with torch.no_grad():
            scorer.model(torch.tensor([ids]))
        for hook in hooks:
            hook.remove()
    return {path: (torch.cat(x), torch.cat(y)) for path, (x, y) in found.items()}


def effects(pair, inputs):
    found = []
    for adapter in pair:
        total = 0.0
        for path, (x, y) in inputs.items():
            if path in adapter.modules:
                added = x @ adapter.modules[path].delta().T
                total += float(added.norm(dim=-1).mean() / y.norm(dim=-1).mean())
        found.append(total / len(inputs))
    return found


def test_hidden_crosstalk_is_that_of_dense_deltas(scorer, pair, task):
    known = measured(task, e1_target=1.0, e0_hop1=1.0)
    rows = rows_of(scorer, pair, task, ["hidden_crosstalk"], known)
    prompts = {"target": [i.prompt for i in task.items],
               "hop1": [i.hops[0].prompt for i in task.items]}  # fmt: skip
    for part, who in {"target": ("e0", "e1"), "hop1": ("e1", "e0")}.items():
        inputs = hidden_inputs(scorer, making.LLAMA, scorer.encoder.prompts(prompts[part]))
        size = dict(zip(("e0", "e1"), effects(pair, inputs), strict=True))
        row = one(rows, part=part)
        assert row.adapters == who
        assert row.value == pytest.approx(size[who[0]] / size[who[1]], rel=1e-4)
    assert not [r for r in rows if r.part == "cot"]  # nobody is better than the base there
    both = {r.adapters: r.value for r in rows if r.part == "all"}
    assert both["e0", "e1"] * both["e1", "e0"] == pytest.approx(1.0)


def test_gates_are_those_of_the_router_on_the_bases_states(scorer, pair, task):
    router = Arrow(temperature=0.5)
    known = measured(task, e1_hop1=1.0)
    rows = rows_of(scorer, pair, task, ["gate_share", "gate_agreement", "gate_entropy"], known,
                   router)  # fmt: skip
    ids = scorer.encoder.prompts([i.hops[0].prompt for i in task.items])
    shares, above, entropy = [], [], []
    for path in pair[1].modules:  # those that both have
        x, _ = hidden_inputs(scorer, [path], ids)[path]
        scores = []
        for adapter in pair:
            right = torch.linalg.svd(adapter.modules[path].delta().double()).Vh[0]
            scores.append((x.double() @ right).abs() / 0.5)
        g = torch.stack(scores, -1).softmax(-1)
        shares.append(g.mean(0))
        above.append((g > 0.5).double().mean(0))
        entropy.append(float((-(g * g.log()).sum(-1) / math.log(2)).mean()))
    share0, share1 = torch.stack(shares).mean(0).tolist()
    assert one(rows, name="gate_share", part="hop1", adapters=("e0",)).value == pytest.approx(
        share0, abs=1e-5
    )
    assert one(rows, name="gate_share", part="hop1", adapters=("e1",)).value == pytest.approx(
        share1, abs=1e-5
    )
    agreed = one(rows, name="gate_agreement")
    assert (agreed.part, agreed.adapters) == ("hop1", ("e1",))
    assert agreed.value == pytest.approx(float(torch.stack(above).mean(0)[1]), abs=1e-5)
    assert one(rows, name="gate_entropy", part="hop1").value == pytest.approx(
        share(entropy), abs=1e-5
    )
    assert rows_of(scorer, pair, task, ["gate_share", "routed_score"], known) == ()  # no router


def test_template_loss_is_read_on_what_the_best_adapter_writes(scorer, pair, task):
    rows = rows_of(scorer, pair, task, ["template_loss"], measured(task, e1_cot=1.0))
    prompts = [i.cot_prompt for i in task.items]
    texts = composed_says(scorer, single(pair[1]), prompts, max_new_tokens=6)
    pairs = [(p, t) for p, t in zip(prompts, texts, strict=True) if t.strip()]
    row = one(rows)
    assert (row.adapters, row.part, row.n) == (("e0", "e1"), "cot", len(pairs))
    base = share([-x.per_token for x in scorer.loglikelihood(pairs)])
    with scorer.with_composition(single(pair[0])):
        own = share([-x.per_token for x in scorer.loglikelihood(pairs)])
    assert (row.value, row.baseline) == pytest.approx((own, base), rel=1e-4)


def test_routed_score_of_one_expert_everywhere_is_that_adapter(scorer, pair, task):
    """Where the second adapter has no effect, Arrow's gates still share; with equal twins each gets
    half, so the routed score is the additive score at gate 1/2."""
    twins = (pair[0], pair[0].renamed("e1"))
    rows = rows_of(scorer, twins, task, ["routed_score", "additive_score"], measured(task), Arrow())
    for part in ("target", "cot"):
        routed = one(rows, name="routed_score", part=part)
        assert routed.gate is None
        assert routed.value == one(rows, name="additive_score", part=part, gate=0.5).value


def test_figures_depend_on_neither_batches_nor_order_nor_anything_but_the_seed(scorer, pair, task):
    other = dataclasses.replace(task, name="u", items=task.items[:4])
    small = Scorer(scorer.model, scorer.tokenizer, batch_size=1)
    known = measured(task, e1_cot=1.0) + measured(other, e0_cot=1.0)
    probes = [f"{name}:items=3" for name in WATCHING]
    once = rows_of(scorer, pair, [task, other], probes, known, Arrow(), seed=1)
    again = rows_of(small, pair, [task, other], probes, known, Arrow(), seed=1)
    assert len(once) == len(again) > 40
    for a, b in zip(once, again, strict=True):
        assert dataclasses.replace(a, value=0, ci95=None, baseline=0) == dataclasses.replace(
            b, value=0, ci95=None, baseline=0
        )
        assert a.value == pytest.approx(b.value, abs=1e-4)
    turned = rows_of(scorer, pair[::-1], [task, other], probes, known, Arrow(), seed=1)
    key = {(r.task, r.name, r.part, r.gate, frozenset(r.adapters)): r.value for r in turned
           if r.name != "hidden_crosstalk"}  # fmt: skip
    for row in once:
        if row.name != "hidden_crosstalk":
            found = key[row.task, row.name, row.part, row.gate, frozenset(row.adapters)]
            assert row.value == pytest.approx(found, abs=1e-4)
    assert {r.n for r in once if r.part != "all" and r.name != "template_loss"} == {3}


def test_what_nobody_measured_is_measured_the_worked_form_too(scorer, pair, task):
    rows = rows_of(scorer, pair, task, ["template_loss", "shrunk_score"])
    assert {r.part for r in rows} == {"target", "hop1", "cot"}
    assert all(r.baseline is not None for r in rows)


def test_the_best_adapter_and_the_specialist():
    task = Task("t", (Item("0", "q", ("a",)), Item("1", "r", ("a",))))

    def study(**scores):
        rows = [ItemResult(s, "t", "target", str(i), "exact_match", float(v), "", str(i))
                for s, values in scores.items() for i, v in enumerate(values)]  # fmt: skip
        return Study(task, ("x", "y"), tuple(rows), MadeUpNames(word_tokenizer()))

    found = study(base=(0, 0), x=(1, 0), y=(1, 1))
    assert (found.best(found.parts[0]), found.specialist(found.parts[0])) == ("y", "y")
    found = study(base=(1, 1), x=(1, 0), y=(0, 1))
    assert (found.best(found.parts[0]), found.specialist(found.parts[0])) == ("x", None)
    found = study(base=(1, 0), x=(0, 1), y=(0, 0))
    assert (found.best(found.parts[0]), found.specialist(found.parts[0])) == ("x", None)
    assert study().best(found.parts[0]) is None
