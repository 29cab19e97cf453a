"""The gates of routers: against those of a pass of one's own, in audits and on pages."""

import json
import math
from dataclasses import replace

import making
import pytest
import torch
from audits import an_audit, changed, rendered
from words import word_tokenizer

from loraprobe.adapters import read_adapter
from loraprobe.base import load_base, open_base
from loraprobe.composition import Composition, composed
from loraprobe.evaluation import System
from loraprobe.extensions.gates.records import Gates, GateStatistics
from loraprobe.extensions.gates.statistics import GateTally, gate_statistics
from loraprobe.report.documents import audit_from
from loraprobe.routing import ROUTERS
from loraprobe.scoring import ModelScorer, read_texts
from loraprobe.tasks import Item, Task, load_task
from loraprobe_lab import shipped_world


@pytest.fixture(scope="module")
def scorer():
    loaded = load_base(
        open_base(shipped_world().base), device=torch.device("cpu"), dtype=torch.float32
    )
    return ModelScorer(loaded.model, loaded.tokenizer)


@pytest.fixture(scope="module")
def pair():
    chosen = shipped_world().scenario("disjoint")
    return [read_adapter(path) for path in chosen.adapters.values()]


def test_gates_are_counted_token_by_token():
    tally = GateTally(3)
    tally.see(torch.tensor([[0, 1, 1], [0, 1, 0]]).bool())
    gates = torch.tensor([[[9.0, 9], [1, 0], [0.5, 0.5]], [[9, 9], [0.25, 0.75], [9, 9]]])
    tally.add("a.0.q", (0, 2), gates)
    tally.add("a.0.q", (0, 2), gates.reshape(6, 2))  # flattened rows are the same tokens
    sums = tally.modules["a.0.q"]
    third = -(0.25 * math.log(0.25) + 0.75 * math.log(0.75))
    entropies = [math.log(2) + third, 1 + third / math.log(2)]
    assert sums.tolist() == pytest.approx([2 * x for x in (1.75, 0, 1.25, *entropies, 3)])
    tally.add("alone", (1,), torch.ones(2, 3, 1))
    tally.add("head", (0, 1), torch.ones(2, 1, 2))
    assert set(tally.modules) == {"a.0.q"}


def test_gate_statistics_are_those_of_the_composed_model(scorer, pair):
    """One prompt, against the gates of a pass of one's own."""
    task = Task("t", (Item("1", "Where does the spouse of Stakri live?", ("x",)),))
    arrow = Composition("arrow", tuple(pair), ROUTERS.make("arrow"))
    constant = Composition("uniform", tuple(pair), ROUTERS.make("constant"))
    systems = [
        System("base", "base"),
        System("arrow", "router", arrow),
        System("uniform", "merge", constant),
    ]
    rows, note = gate_statistics(scorer, systems, [task])
    seen = {}
    ids = torch.tensor(scorer.encoder.prompts([task.items[0].prompt]))
    with torch.no_grad(), composed(scorer.model, arrow, lambda p, i, g: seen.update({p: g[0]})):
        scorer.model(input_ids=ids)
    (row,) = rows
    assert row.system == "arrow" and "1 prompts" in note
    own = [g.double() for g in seen.values()]
    assert (row.modules, row.n) == (len(own), ids.shape[1])
    mean = torch.stack([g.mean(0) for g in own]).mean(0)
    assert list(row.share.values()) == pytest.approx(mean.tolist(), abs=1e-6)
    entropy = torch.stack([-(g * g.log()).sum(-1).mean() for g in own]).mean()
    assert row.entropy == pytest.approx(float(entropy), abs=1e-6)
    assert row.entropy_share == pytest.approx(row.entropy / math.log(2))
    assert sum(row.share.values()) == pytest.approx(1)
    (file,) = shipped_world().scenario("disjoint").tasks
    many = Task("t", load_task(file).items[:60])
    few, note = gate_statistics(scorer, systems, [many], most=5)
    again, _ = gate_statistics(scorer, systems, [many], most=5)
    assert few == again and "5 of 60 prompts" in note
    assert gate_statistics(scorer, systems[:1], [task]) == ((), "")


def test_a_router_that_reads_the_text_has_a_share_of_prompts():
    names = "Mara Tobin Sella Ugo Prim Anselm Nuri Halen".split()
    asked = {
        "spouse": [f"Who is the spouse of {name}?" for name in names],
        "home": [f"Where does {name} live?" for name in names],
    }
    experts = tuple(making.random_adapter(n, rank=2, seed=i) for i, n in enumerate(asked))
    known = {name: prompts[:6] for name, prompts in asked.items()}
    router = ROUTERS.make("by-text").fit(None, experts, known)
    routed = System("by-text", "router", Composition("by-text", experts, router))
    prompts = [*asked["spouse"][6:], asked["home"][6], "Sort these numbers: 4, 2, 9"]
    tasks = [Task("t", tuple(Item(str(i), p, ("y",)) for i, p in enumerate(prompts)))]

    class Reader:
        context = None

        class encoder:
            prompts = staticmethod(lambda texts: [[1]] * len(texts))

    (row,), _ = gate_statistics(Reader(), [routed], tasks)
    assert row.share == {"spouse": 0.5, "home": 0.25} and row.n == 4


def test_rows_that_come_again_in_a_smaller_batch_count_once(monkeypatch):
    experts = tuple(making.random_adapter(name, seed=i) for i, name in enumerate("ab", 1))
    routed = Composition("arrow", experts, ROUTERS.make("arrow"))
    prompts = ("ada lives in ulm", "who is cy ?", "the mayor of ulm is bo", "cy", "bo lives in")

    def tally() -> GateTally:
        found = GateTally(2)
        scorer = ModelScorer(making.tiny_llama(), word_tokenizer(), batch_size=5)
        with composed(scorer.model, routed, found.add):
            read_texts(scorer, prompts, found.see)
        return found

    plain = tally()
    seen = making.narrow(monkeypatch, 2, torch.OutOfMemoryError("CUDA out of memory. Tried"))
    halved = tally()
    assert max(seen) == 5 and 1 in seen and plain.modules.keys() == halved.modules.keys()
    for path, sums in plain.modules.items():
        assert halved.modules[path][-1] == sums[-1] > 5
        torch.testing.assert_close(halved.modules[path], sums, rtol=1e-5, atol=0)


def test_merge_and_eval_tells_the_gates_of_its_routers():
    options = "--router arrow --router arrow:per=sequence --limit 4 --exit-zero"
    found = making.document("merge-and-eval", *making.shipped("disjoint"), *options.split())
    rows = {row["system"]: row for row in found["gates"]}
    assert {*rows} == {"arrow", "arrow:per=sequence"}
    assert all(sum(row["share"].values()) == pytest.approx(1) for row in rows.values())
    assert any(note.startswith("Gates are those on") for note in found["notes"])
    assert "gates" in found["provenance"]["seconds"]


def test_an_audit_keeps_and_shows_them():
    rows = (
        GateStatistics("arrow", {"a": 0.75, "b": 0.25}, 0.5, 0.72, 4, 90),
        GateStatistics("spectr", {"a": 1.0, "b": 0.0}, 0.0, 0.0, 2, 90),
    )
    audit = replace(an_audit(), added=(Gates(rows),))
    document = json.loads(audit.to_json())
    assert audit_from(document).gates == rows == audit.gates and an_audit().gates == ()
    for path, value, named in [
        (("gates",), {}, "gates"),
        (("gates", 0, "share"), [], r"gates\[0\].share"),
    ]:
        wrong = json.loads(audit.to_json())
        changed(wrong, path, value)
        with pytest.raises(ValueError, match=named):
            audit_from(wrong)
    shown = rendered(audit)
    assert "Mean share" in shown and "0.50 (0.72)" in shown
    assert "Mean share" not in rendered(an_audit()) + rendered(audit, explain=False)
