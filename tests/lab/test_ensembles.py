"""Systems side by side in one batch: what each would say alone, and what they say added up."""

from __future__ import annotations

import pytest
import torch
from composing import alone, scene
from words import PAIRS, PROMPTS

from loraprobe.composition import Composition, composed, watched
from loraprobe.routing.arrow import Arrow
from loraprobe.routing.constant import ConstantGates
from loraprobe_lab.calibration.ensembles import LogitEnsemble, score_together, write_together
from loraprobe_lab.calibration.routed_rows import RoutedRows


def member(i, gate=1.0):
    """The i-th of two experts alone, as an ensemble."""
    return LogitEnsemble((tuple(gate if j == i else 0.0 for j in range(2)),), (1.0,))


def written(scorer, adapters, ensembles, prompts=PROMPTS, inner=None, **rest):
    gates = RoutedRows(inner=inner)
    with scorer.with_composition(Composition("rows", adapters, gates)):
        found = write_together(scorer, prompts, ensembles, gates.rows.set, **rest)
    return [[reply.text for reply in replies] for replies in found]


KINDS = pytest.mark.parametrize("kind", ["llama", "gpt2", "embedded"])


@KINDS
@pytest.mark.parametrize("batch", [5, "auto"])
def test_side_by_side_each_says_what_it_says_alone(kind, batch):
    scorer, adapters = scene(kind, batch)
    wanted = [(0, 1.0), (1, 1.0), (1, 0.5)]
    ensembles = [member(i, gate) for i, gate in wanted] + [LogitEnsemble(((0.0, 0.0),), (1.0,))]
    found = written(scorer, adapters, ensembles, max_new_tokens=7)
    texts = []
    for i, gate in wanted:
        with scorer.with_composition(alone(adapters, i, gate)):
            texts.append(scorer.generate(PROMPTS, max_new_tokens=7))
    texts.append(scorer.generate(PROMPTS, max_new_tokens=7))
    assert found == texts
    assert len({tuple(own) for own in texts}) == len(texts)  # they do differ


def test_lines_end_where_they_end_alone():
    scorer, adapters = scene("llama")
    with torch.no_grad():  # word 3 is a newline
        scorer.model.lm_head.weight[3] += 0.5 * scorer.model.lm_head.weight[5:].mean(0)
    for line in (True, False):
        found = written(scorer, adapters, [member(0)], max_new_tokens=9, until_newline=line)
        with scorer.with_composition(alone(adapters, 0)):
            texts = scorer.generate(PROMPTS, max_new_tokens=9, until_newline=line)
        assert found[0] == texts


def logits_of(scorer, composition, ids):
    with torch.no_grad(), composed(scorer.model, composition):
        return scorer.model(torch.tensor([ids])).logits[0].double()


@pytest.mark.parametrize(
    ("kind", "gate"), [("llama", 0.5), ("llama", 1.0), ("gpt2", 1.0), ("embedded", 0.5)]
)
def test_added_effects_are_those_of_a_loop_without_batches_or_caches(kind, gate):
    scorer, adapters = scene(kind)
    (found,) = written(scorer, adapters, [LogitEnsemble.added((gate, gate))], max_new_tokens=4)
    base = Composition("base", (), ConstantGates(()))
    for prompt, got in zip(PROMPTS, found, strict=True):
        ids, new = scorer.encoder.prompts([prompt])[0], []
        for _ in range(4):
            z0 = logits_of(scorer, base, ids + new)[-1]
            z = [logits_of(scorer, alone(adapters, i, gate), ids + new)[-1] for i in range(2)]
            token = int((z0 + (z[0] - z0) + (z[1] - z0)).argmax())
            if token in scorer.stops:
                break
            new.append(token)
        assert got == scorer.decode(new)


@KINDS
def test_choices_are_scored_under_added_logits(kind):
    scorer, adapters = scene(kind, 7)
    gates = RoutedRows()
    ensembles = [LogitEnsemble.added((0.5, 0.5)), member(1)]
    with scorer.with_composition(Composition("rows", adapters, gates)):
        added, second = score_together(scorer, PAIRS, ensembles, gates.rows.set)
    with scorer.with_composition(alone(adapters, 1)):
        likely = scorer.loglikelihood(PAIRS)
    assert second == pytest.approx([found.logprob for found in likely], abs=1e-4)
    base = Composition("base", (), ConstantGates(()))
    for (ids, start), got in zip(scorer.encoder.pairs(PAIRS), added, strict=True):
        z0 = logits_of(scorer, base, ids)
        z = sum(logits_of(scorer, alone(adapters, i, 0.5), ids) for i in range(2)) - z0
        logp = z.log_softmax(-1)
        assert got == pytest.approx(
            sum(float(logp[t - 1, ids[t]]) for t in range(start, len(ids))), abs=1e-4
        )


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_routed_gates_are_those_of_the_base_that_reads_the_same(kind):
    """The oracle records the base's inputs, then runs one adapter at the gates they call for."""
    scorer, adapters = scene(kind)
    router, ids = Arrow(), [1, 5, 8, 9, 12, 7]
    inputs: dict = {}
    both = Composition("both", adapters, router)

    def keep(path, x, output):
        inputs[path] = x.clone()

    with torch.no_grad(), watched(scorer.model, both.experts, keep):
        z0 = scorer.model(torch.tensor([ids])).logits[0]

    def gated(i):
        hooks = []
        for path in adapters[i].modules:
            present = [j for j, adapter in enumerate(adapters) if path in adapter.modules]
            updates = [adapters[j].modules[path] for j in present]
            gates = router.gates(path, updates, present, 2)
            gate = gates if isinstance(gates, torch.Tensor) else gates(inputs[path])
            own, delta = gate[..., present.index(i), None], adapters[i].modules[path].delta()

            def add(_, args, output, own=own, delta=delta):
                return output + own * (args[0] @ delta.T)

            hooks.append(scorer.model.get_submodule(path).register_forward_hook(add))
        with torch.no_grad():
            found = scorer.model(torch.tensor([ids])).logits[0]
        for hook in hooks:
            hook.remove()
        return found

    gates = RoutedRows(inner=router)
    rows = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    gates.rows.set(rows, torch.zeros(3, dtype=torch.long))
    with torch.no_grad(), composed(scorer.model, Composition("rows", adapters, gates)):
        found = scorer.model(torch.tensor([ids] * 3)).logits
    torch.testing.assert_close(found[0], z0, atol=1e-5, rtol=1e-5)
    for i in range(2):
        torch.testing.assert_close(found[i + 1], gated(i), atol=1e-4, rtol=1e-4)


def test_rows_flattened_with_their_tokens_keep_their_gates():
    _, adapters = scene("llama")
    path = "model.layers.0.mlp.up_proj"
    updates = [adapter.modules[path] for adapter in adapters]
    x = torch.randn(2, 3, 16)
    for lead in (torch.tensor([0, 0]), None):
        gates = RoutedRows(inner=Arrow())
        gates.rows.set(torch.tensor([[1.0, 0.0], [0.0, 0.5]]), lead)
        made = gates.gates(path, updates, [0, 1], 2)
        torch.testing.assert_close(made(x.reshape(6, 16)), made(x).reshape(6, 2))
        routed = Arrow().gates(path, updates, [0, 1], 2)(x if lead is None else x[[0, 0]])
        torch.testing.assert_close(made(x), routed * gates.rows.gates[:, None])
